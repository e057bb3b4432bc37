"""Label rows that go through no template: a prompt with its completion, and plain text.

A completion ends in eos, and so does a text: a model that never sees the end never ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import PlainText, PromptCompletion
from lora_sft.data.labels.continuation import ContinuationTokenizer
from lora_sft.data.labels.token_spans import check_single_bos
from lora_sft.data.supervised_row import SupervisedRow, Turn, make_supervised_row
from lora_sft.errors import DataError

PROBE_TEXT = "word"


@dataclass(frozen=True)
class TextRow:
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


def write_text_row(example: PlainText | PromptCompletion, loss_on: str, where: str) -> TextRow:
    """What of a text example is learned.

    Raises: RowDropped for an empty text, DataError where `loss_on` asks for what is not there.
    """
    if isinstance(example, PlainText):
        if loss_on not in ("auto", "all"):
            fix = "set data.loss_on: auto or all"
            raise DataError(f"loss_on: {loss_on}, but the row is plain text", where, fix)
        if not example.text.strip():
            raise RowDropped("no_target", "the text is empty")
        return TextRow(where, "text", "", example.text, learns_prompt=True)
    prompt = example.prompt.rstrip(" ")
    moved = example.prompt[len(prompt) :]
    learns_prompt = loss_on == "all"
    role = "text" if learns_prompt else "completion"
    return TextRow(
        where, role, prompt, moved + example.completion, learns_prompt, moved_spaces=bool(moved)
    )


class TextTokenizer:
    """Tokenises text rows with the tokenizer's own special tokens, and ends them in eos."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces = ContinuationTokenizer(tokenizer)
        self._appends_eos = _appends_eos(tokenizer)

    def tokenize(self, rows: Sequence[TextRow]) -> list[SupervisedRow]:
        """Ids and labels of every row, in order."""
        if not rows:
            return []
        if self._tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no eos token to end a text with",
                rows[0].where,
                "name one in tokenizer.eos_token",
            )
        plain = [row for row in rows if not row.is_escaped]
        done = iter(self._tokenize_alike(plain, is_escaped=False))
        escaped = iter(self._tokenize_alike([r for r in rows if r.is_escaped], is_escaped=True))
        return [next(escaped) if row.is_escaped else next(done) for row in rows]

    def _tokenize_alike(self, rows: Sequence[TextRow], *, is_escaped: bool) -> list[SupervisedRow]:
        if not rows:
            return []
        prompts = self._encode([row.prompt for row in rows], is_escaped)
        joint = self._encode([row.prompt + row.completion for row in rows], is_escaped)
        return [self._label(*parts) for parts in zip(rows, prompts, joint, strict=True)]

    def _encode(self, texts: list[str], is_escaped: bool) -> list[list[int]]:
        """Ids with the tokenizer's own beginning, without an ending it may add."""
        batch = self._tokenizer(
            texts, return_attention_mask=False, verbose=False, split_special_tokens=is_escaped
        )
        return [self._without_eos(ids) for ids in batch["input_ids"]]

    def _without_eos(self, ids: list[int]) -> list[int]:
        """Ids without the eos that the tokenizer added; one that the text wrote stays in it."""
        return ids[:-1] if self._appends_eos else ids

    def _label(self, row: TextRow, prompt: list[int], joint: list[int]) -> SupervisedRow:
        keeps_prompt = joint[: len(prompt)] == prompt
        ids = joint
        if not keeps_prompt:
            ids = prompt + self._pieces.encode(row.completion, plainly=row.is_escaped)
        check_single_bos(ids, self._tokenizer, row.where)
        if not self._ends_in_eos(ids[len(prompt) :]):
            ids = [*ids, self._tokenizer.eos_token_id]
        start = 0 if row.learns_prompt else len(prompt)
        turn = Turn(row.role, None, start, len(ids))
        built = "rendered" if keeps_prompt and not row.moved_spaces else "boundary"
        built = "escaped" if row.is_escaped else built
        return make_supervised_row(ids, [turn], built)

    def _ends_in_eos(self, completion: list[int]) -> bool:
        """Whether the completion writes its own end (`special_tokens_in_content: allow`)."""
        return completion[-1:] == [self._tokenizer.eos_token_id]


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself ends a text in eos, as those of encoders do."""
    ids = tokenizer(PROBE_TEXT, return_attention_mask=False)["input_ids"]
    return bool(ids) and ids[-1] == tokenizer.eos_token_id
