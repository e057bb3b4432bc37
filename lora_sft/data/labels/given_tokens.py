"""Label examples that arrive as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lora_sft.data.drops import MalformedRow
from lora_sft.data.examples.conversation import TokenizedExample
from lora_sft.data.labelled_row import LabelledRow, Turn, make_labelled_row
from lora_sft.errors import DataError


def label_tokenized_example(
    example: TokenizedExample, num_tokens_known: int, loss_on: str, where: str
) -> LabelledRow:
    """Return the labelled row with the example's own ids; its `built` is `given`.

    Raises:
        MalformedRow: If the tokenizer does not have one of the ids.
        DataError: If `loss_on` does not suit the example.
    """
    largest = max(example.input_ids)
    if largest >= num_tokens_known:
        detail = f"the tokenizer has no token id {largest}; its largest is {num_tokens_known - 1}"
        raise MalformedRow(detail)
    _check_loss_on(example, loss_on, where)
    is_target = example.is_target or (True,) * len(example.input_ids)
    return make_labelled_row(list(example.input_ids), _find_turns(is_target, example.role), "given")


def _check_loss_on(example: TokenizedExample, loss_on: str, where: str) -> None:
    if example.is_target is None and loss_on != "all":
        raise DataError(
            "the row has input_ids, but neither labels nor a mask that choose the learned tokens",
            where,
            "add labels, completion_mask or assistant_masks, or set data.loss_on: all",
        )
    if example.is_target is not None and loss_on != "auto":
        raise DataError(
            f"loss_on: {loss_on}, but the row's labels or mask already choose the learned tokens",
            where,
            "set data.loss_on: auto",
        )


def _find_turns(is_target: Sequence[bool], role: str) -> list[Turn]:
    """Return one turn per unbroken stretch of learned tokens, in order."""
    turns, position = [], 0
    for learned, stretch in groupby(is_target):
        end = position + len(list(stretch))
        if learned:
            turns.append(Turn(role, None, position, end))
        position = end
    return turns
