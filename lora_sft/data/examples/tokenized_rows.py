"""Source rows that are token ids already: `input_ids`, and what of them is learned.

What is learned is said by `labels` (each `IGNORED_LABEL` or the id itself: no shift, no other
target), or by `completion_mask` and `assistant_masks` (1 where learned; with both, where both say
so), as TRL writes them. A source row that says neither is learned as a whole, and only where
`loss_on: all` asks for that. Tokens that `attention_mask` switches off at either end are padding
and are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.examples.conversation import TokenizedExample
from lora_sft.data.labelled_row import IGNORED_LABEL

# The role of what each of them marks, for people to read.
MASK_ROLES = {"completion_mask": "completion", "assistant_masks": "assistant"}


def read_tokenized_row(values: Mapping[str, Any]) -> TokenizedExample:
    """Ids, and labels or masks of the same length.

    Raises: MalformedRow.
    """
    input_ids = _read_numbers(values, "input_ids")
    if not input_ids:
        raise MalformedRow('"input_ids" is empty')
    if min(input_ids) < 0:
        raise MalformedRow(f"{min(input_ids)} is no token id")
    start, end = _find_unpadded(values, len(input_ids))
    is_target, role = _read_targets(values, input_ids)
    learned = None if is_target is None else tuple(is_target[start:end])
    return TokenizedExample(tuple(input_ids[start:end]), learned, role)


def _read_numbers(values: Mapping[str, Any], column: str) -> list[int]:
    numbers = values.get(column)
    if not isinstance(numbers, list):
        raise MalformedRow(f'"{column}" is not a list of whole numbers')
    odd = next((number for number in numbers if type(number) is not int), None)
    if odd is not None or None in numbers:
        raise MalformedRow(f'"{column}" holds {odd!r}, which is no whole number')
    return numbers


def _read_mask(values: Mapping[str, Any], column: str, length: int) -> list[bool]:
    marks = values.get(column)
    if not isinstance(marks, list) or any(mark not in (0, 1) for mark in marks):
        raise MalformedRow(f'"{column}" is not a list of 0 and 1')
    _check_length(column, marks, length)
    return [bool(mark) for mark in marks]


def _check_length(column: str, items: Sequence[Any], length: int) -> None:
    if len(items) != length:
        raise MalformedRow(f'"{column}" has {len(items)} items, "input_ids" {length}')


def _find_unpadded(values: Mapping[str, Any], length: int) -> tuple[int, int]:
    if values.get("attention_mask") is None:
        return 0, length
    seen = _read_mask(values, "attention_mask", length)
    if not any(seen):
        raise MalformedRow('"attention_mask" leaves no token')
    start, end = seen.index(True), length - seen[::-1].index(True)
    if not all(seen[start:end]):
        raise MalformedRow('"attention_mask" leaves out tokens in the midst of the row')
    return start, end


def _read_targets(values: Mapping[str, Any], input_ids: list[int]) -> tuple[list[bool] | None, str]:
    masks = {
        column: _read_mask(values, column, len(input_ids))
        for column in MASK_ROLES
        if values.get(column) is not None
    }
    if values.get("labels") is not None:
        if masks:
            raise MalformedRow(f'both "labels" and "{next(iter(masks))}" say what is learned')
        return _read_labels(values, input_ids), "completion"
    if not masks:
        return None, "text"
    return [all(marks) for marks in zip(*masks.values(), strict=True)], MASK_ROLES[list(masks)[-1]]


def _read_labels(values: Mapping[str, Any], input_ids: list[int]) -> list[bool]:
    labels = _read_numbers(values, "labels")
    _check_length("labels", labels, len(input_ids))
    for position, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        if label not in (token, IGNORED_LABEL):
            detail = f"label {position} is {label}, neither {IGNORED_LABEL} nor the id {token}"
            raise MalformedRow(detail)
    return [label != IGNORED_LABEL for label in labels]
