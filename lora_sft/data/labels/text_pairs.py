"""Label examples without a chat template: a prompt with its completion, and plain text.

Both end in eos. A model that never sees an end does not learn to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import PlainText, PromptCompletion
from lora_sft.data.labelled_row import LabelledRow, Turn, make_labelled_row
from lora_sft.data.labels.continuation import ContinuationTokenizer
from lora_sft.data.labels.token_spans import check_single_bos
from lora_sft.errors import DataError

PROBE_TEXT = "word"


@dataclass(frozen=True)
class TextPair:
    """A prompt and its completion, before tokenisation.

    The two are tokenised as one text if the prompt then keeps the tokens of the served prompt.

    Attributes:
        learns_prompt: Whether the prompt is learned too.
        moved_spaces: Whether trailing spaces of the prompt now begin the completion. Tokenizers
            expect a space at the beginning of a word.
        is_escaped: Whether strings that look like special tokens are ordinary text.
    """

    where: str
    role: str
    prompt: str
    completion: str
    learns_prompt: bool = False
    moved_spaces: bool = False
    is_escaped: bool = False


def make_text_pair(example: PlainText | PromptCompletion, loss_on: str, where: str) -> TextPair:
    """Return the prompt and the completion of an example. A plain text has an empty prompt.

    Raises:
        RowDropped: If the text is empty.
        DataError: If `loss_on` does not suit the example.
    """
    if isinstance(example, PlainText):
        if loss_on not in ("auto", "all"):
            fix = "set data.loss_on: auto or all"
            raise DataError(f"loss_on: {loss_on}, but the row is plain text", where, fix)
        if not example.text.strip():
            raise RowDropped("no_target", "the text is empty")
        return TextPair(where, "text", "", example.text, learns_prompt=True)
    prompt = example.prompt.rstrip(" ")
    moved = example.prompt[len(prompt) :]
    learns_prompt = loss_on == "all"
    role = "text" if learns_prompt else "completion"
    return TextPair(
        where, role, prompt, moved + example.completion, learns_prompt, moved_spaces=bool(moved)
    )


class TextTokenizer:
    """A tokenizer for text pairs. It adds the tokenizer's own bos, and ends each pair in eos."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces = ContinuationTokenizer(tokenizer)
        self._appends_eos = _appends_eos(tokenizer)

    def tokenize(self, pairs: Sequence[TextPair]) -> list[LabelledRow]:
        """Return the labelled row of each pair, in order.

        Raises: DataError if the tokenizer has no eos token.
        """
        if not pairs:
            return []
        if self._tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no eos token to end a text with",
                pairs[0].where,
                "set tokenizer.eos_token to one of the tokenizer's tokens",
            )
        plain = [pair for pair in pairs if not pair.is_escaped]
        done = iter(self._tokenize_batch(plain, is_escaped=False))
        escaped = iter(self._tokenize_batch([p for p in pairs if p.is_escaped], is_escaped=True))
        return [next(escaped) if pair.is_escaped else next(done) for pair in pairs]

    def _tokenize_batch(self, pairs: Sequence[TextPair], *, is_escaped: bool) -> list[LabelledRow]:
        if not pairs:
            return []
        prompts = self._encode([pair.prompt for pair in pairs], is_escaped)
        joint = self._encode([pair.prompt + pair.completion for pair in pairs], is_escaped)
        return [self._label(*parts) for parts in zip(pairs, prompts, joint, strict=True)]

    def _encode(self, texts: list[str], is_escaped: bool) -> list[list[int]]:
        """Return ids with the special tokens that the tokenizer adds, except an eos at the end."""
        batch = self._tokenizer(
            texts, return_attention_mask=False, verbose=False, split_special_tokens=is_escaped
        )
        return [self._remove_added_eos(ids) for ids in batch["input_ids"]]

    def _remove_added_eos(self, ids: list[int]) -> list[int]:
        """Return the ids without the eos that the tokenizer added. An eos in the text stays."""
        return ids[:-1] if self._appends_eos else ids

    def _label(self, pair: TextPair, prompt: list[int], joint: list[int]) -> LabelledRow:
        keeps_prompt = joint[: len(prompt)] == prompt
        ids = joint
        if not keeps_prompt:
            ids = prompt + self._pieces.encode(pair.completion, as_plain_text=pair.is_escaped)
        check_single_bos(ids, self._tokenizer, pair.where)
        if not self._ends_in_eos(ids[len(prompt) :]):
            ids = [*ids, self._tokenizer.eos_token_id]
        start = 0 if pair.learns_prompt else len(prompt)
        turn = Turn(pair.role, None, start, len(ids))
        built = "rendered" if keeps_prompt and not pair.moved_spaces else "boundary"
        built = "escaped" if pair.is_escaped else built
        return make_labelled_row(ids, [turn], built)

    def _ends_in_eos(self, completion: list[int]) -> bool:
        """Return whether the completion has its own eos (`special_tokens_in_content: allow`)."""
        return completion[-1:] == [self._tokenizer.eos_token_id]


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer itself ends a text in eos, as tokenizers of encoders do."""
    ids = tokenizer(PROBE_TEXT, return_attention_mask=False)["input_ids"]
    return bool(ids) and ids[-1] == tokenizer.eos_token_id
