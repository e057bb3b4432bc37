"""Label examples that go through no template: a prompt with its completion, and plain text.

A completion ends in eos, and so does a text: a model that never sees the end never ends.
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
    """Two texts to be tokenised as one where that keeps the prompt as it is served.

    `moved_spaces`: the prompt's trailing spaces now begin the completion, where tokenizers
    expect them. `is_escaped`: strings that look like special tokens are ordinary text.
    """

    where: str
    role: str
    prompt: str
    completion: str
    learns_prompt: bool = False
    moved_spaces: bool = False
    is_escaped: bool = False


def write_text_pair(example: PlainText | PromptCompletion, loss_on: str, where: str) -> TextPair:
    """What of a text example is learned.

    Raises: RowDropped for an empty text, DataError where `loss_on` asks for what is not there.
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
    """Tokenises text pairs with the tokenizer's own special tokens, and ends them in eos."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces = ContinuationTokenizer(tokenizer)
        self._appends_eos = _appends_eos(tokenizer)

    def tokenize(self, pairs: Sequence[TextPair]) -> list[LabelledRow]:
        """Ids and labels of every pair, in order."""
        if not pairs:
            return []
        if self._tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no eos token to end a text with",
                pairs[0].where,
                "name one in tokenizer.eos_token",
            )
        plain = [pair for pair in pairs if not pair.is_escaped]
        done = iter(self._tokenize_alike(plain, is_escaped=False))
        escaped = iter(self._tokenize_alike([p for p in pairs if p.is_escaped], is_escaped=True))
        return [next(escaped) if pair.is_escaped else next(done) for pair in pairs]

    def _tokenize_alike(self, pairs: Sequence[TextPair], *, is_escaped: bool) -> list[LabelledRow]:
        if not pairs:
            return []
        prompts = self._encode([pair.prompt for pair in pairs], is_escaped)
        joint = self._encode([pair.prompt + pair.completion for pair in pairs], is_escaped)
        return [self._label(*parts) for parts in zip(pairs, prompts, joint, strict=True)]

    def _encode(self, texts: list[str], is_escaped: bool) -> list[list[int]]:
        """Ids with the tokenizer's own beginning, without an ending it may add."""
        batch = self._tokenizer(
            texts, return_attention_mask=False, verbose=False, split_special_tokens=is_escaped
        )
        return [self._without_eos(ids) for ids in batch["input_ids"]]

    def _without_eos(self, ids: list[int]) -> list[int]:
        """Ids without the eos that the tokenizer added; one that the text wrote stays in it."""
        return ids[:-1] if self._appends_eos else ids

    def _label(self, pair: TextPair, prompt: list[int], joint: list[int]) -> LabelledRow:
        keeps_prompt = joint[: len(prompt)] == prompt
        ids = joint
        if not keeps_prompt:
            ids = prompt + self._pieces.encode(pair.completion, plainly=pair.is_escaped)
        check_single_bos(ids, self._tokenizer, pair.where)
        if not self._ends_in_eos(ids[len(prompt) :]):
            ids = [*ids, self._tokenizer.eos_token_id]
        start = 0 if pair.learns_prompt else len(prompt)
        turn = Turn(pair.role, None, start, len(ids))
        built = "rendered" if keeps_prompt and not pair.moved_spaces else "boundary"
        built = "escaped" if pair.is_escaped else built
        return make_labelled_row(ids, [turn], built)

    def _ends_in_eos(self, completion: list[int]) -> bool:
        """Whether the completion writes its own end (`special_tokens_in_content: allow`)."""
        return completion[-1:] == [self._tokenizer.eos_token_id]


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself ends a text in eos, as those of encoders do."""
    ids = tokenizer(PROBE_TEXT, return_attention_mask=False)["input_ids"]
    return bool(ids) and ids[-1] == tokenizer.eos_token_id
