"""Tokenise rendered conversations, and find the tokens of their learned spans.

A whole text is tokenised once. The character offsets of its tokens then give the learned tokens.

A server tokenises only the prompt. In the whole text, a token may cross the border between prompt
and target, or the prompt may be split into other tokens. Then prompt and target are tokenised
separately, and the row's `built` is `boundary`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from lora_sft.data.labelled_row import LabelledRow, Turn, make_labelled_row
from lora_sft.data.labels.continuation import ContinuationTokenizer
from lora_sft.data.labels.escaping import PLACEHOLDERS
from lora_sft.data.labels.rendered_chat import LearnedText, RenderedChat
from lora_sft.errors import DataError

CACHED_TAILS = 4_096
LONGEST_CACHED_TAIL_CHARACTERS = 1_000
SPLIT_AT_PLACEHOLDERS = re.compile(f"({PLACEHOLDERS.pattern})")


class SpanTokenizer:
    """A tokenizer for rendered conversations. It labels their learned spans."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added_ids = frozenset(tokenizer.added_tokens_decoder)
        self._pieces = ContinuationTokenizer(tokenizer)
        # The text between the last added token and the border is nearly always the same header.
        self._encode_tail = lru_cache(CACHED_TAILS)(self._pieces.encode_start)

    def tokenize(self, chats: Sequence[RenderedChat]) -> list[LabelledRow]:
        """Return the labelled row of each text, in order."""
        if not chats:
            return []
        batch = self._tokenizer(
            [chat.text for chat in chats],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        encoded = zip(chats, batch.encodings, strict=True)
        return [
            self._tokenize_separately(chat) if chat.placeholders else self._label(chat, encoding)
            for chat, encoding in encoded
        ]

    def _label(self, chat: RenderedChat, encoding: Encoding) -> LabelledRow:
        ids = encoding.ids
        check_single_bos(ids, self._tokenizer, chat.where)
        turns = [self._find_turn(chat.text, learned, encoding, ids) for learned in chat.learned]
        found = [turn for turn in turns if turn is not None]
        if len(found) < len(turns):
            return self._tokenize_separately(chat)
        return make_labelled_row(ids, found, chat.built)

    def _find_turn(
        self, text: str, learned: LearnedText, encoding: Encoding, ids: list[int]
    ) -> Turn | None:
        """Return the span in token positions, or None if its borders are not token borders."""
        start = _find_first_token(encoding, learned)
        last = encoding.char_to_token(learned.end - 1)
        if start is None or last is None:
            return None
        end = _find_end_token(encoding, last, learned.end, len(ids))
        if _get_chars(encoding, start)[0] < learned.start:
            return None
        if _get_chars(encoding, end - 1)[1] > learned.end:
            return None
        if not self._keeps_prompt_ids(text, learned.start, start, encoding, ids):
            return None
        return Turn(learned.role, learned.message, start, end)

    def _keeps_prompt_ids(
        self, text: str, border: int, start: int, encoding: Encoding, ids: list[int]
    ) -> bool:
        """Return whether the prompt has the same ids if it is tokenised separately.

        A tokenizer splits a text at added tokens first. So only the part of the prompt after its
        last added token can get other ids.
        """
        tail = next((i for i in range(start - 1, -1, -1) if ids[i] in self._added_ids), 0)
        if start == 0 or (tail == start - 1 and ids[tail] in self._added_ids):
            return True
        tail_text = text[_get_chars(encoding, tail)[0] : border]
        is_short = len(tail_text) <= LONGEST_CACHED_TAIL_CHARACTERS
        encode = self._encode_tail if is_short else self._pieces.encode_start
        return encode(tail_text) == ids[tail:start]

    def _tokenize_separately(self, chat: RenderedChat) -> LabelledRow:
        borders = [0, *(edge for part in chat.learned for edge in (part.start, part.end))]
        ids: list[int] = []
        turns: list[Turn] = []
        for index, (left, right) in enumerate(pairwise([*borders, len(chat.text)])):
            new_ids = self._encode_piece(chat, left, right, is_first=not ids)
            if index % 2:  # every second piece is learned
                learned = chat.learned[index // 2]
                end = len(ids) + len(new_ids)
                turns.append(Turn(learned.role, learned.message, len(ids), end))
            ids += new_ids
        return make_labelled_row(ids, turns, "boundary" if chat.built == "rendered" else chat.built)

    def _encode_piece(
        self, chat: RenderedChat, left: int, right: int, *, is_first: bool
    ) -> list[int]:
        """Return the ids of a part of the text.

        A placeholder stands for text that looks like a control token. Here it becomes ordinary
        text again.
        """
        ids: list[int] = []
        text = chat.text[left:right]
        for piece in SPLIT_AT_PLACEHOLDERS.split(text) if chat.placeholders else [text]:
            literal = chat.placeholders.get(piece)
            if literal is not None:
                ids += self._pieces.encode(literal, as_plain_text=True)
            elif piece:
                starts = is_first and not ids
                ids += self._pieces.encode_start(piece) if starts else self._pieces.encode(piece)
        return ids


def _find_first_token(encoding: Encoding, learned: LearnedText) -> int | None:
    """Return the first token with a character of the span; normalisers may remove characters."""
    tokens = (encoding.char_to_token(i) for i in range(learned.start, learned.end))
    return next((token for token in tokens if token is not None), None)


def _get_chars(encoding: Encoding, token: int) -> tuple[int, int]:
    chars = encoding.token_to_chars(token)
    assert chars is not None, "no special tokens were added, so every token comes from the text"
    return chars


def _find_end_token(encoding: Encoding, last: int, end: int, num_tokens: int) -> int:
    """Return the position after the last token of the span; one character can be several tokens."""
    following = last + 1
    while following < num_tokens and _get_chars(encoding, following)[0] < end:
        following += 1
    return following


def check_single_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Check that a labelled row does not begin with two beginning-of-sequence tokens.

    Raises: DataError if it does.
    """
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise DataError(
            f'the row begins with "{tokenizer.bos_token}" twice',
            where,
            "remove one: either the template writes both, or the data contains the second",
        )
