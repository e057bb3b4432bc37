"""Read source rows that hold token ids in `input_ids`, and find which of them are learned.

The row marks the learned tokens in one of two ways, as TRL writes them:

- `labels` holds the id of each learned token, and `IGNORED_LABEL` for each other token. The labels
  are not shifted, and no other id is accepted.
- `completion_mask` or `assistant_masks` hold 1 for each learned token. If a row has both, a token
  is learned if both hold 1.

A row with neither is learned whole, but only if the recipe sets `loss_on: all`. Tokens at either
end with an `attention_mask` of 0 are padding, and are removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.examples.conversation import TokenizedExample
from lora_sft.data.labelled_row import IGNORED_LABEL

# The role of the tokens that each mask marks, for people to read.
MASK_ROLES = {"completion_mask": "completion", "assistant_masks": "assistant"}


def read_tokenized_row(values: Mapping[str, Any]) -> TokenizedExample:
    """Return the token ids of a source row, and which of them are learned.

    Raises: MalformedRow if the ids, the labels or a mask are not valid, or differ in length.
    """
    input_ids = _read_numbers(values, "input_ids")
    if not input_ids:
        raise MalformedRow('"input_ids" is empty')
    if min(input_ids) < 0:
        raise MalformedRow(f'"input_ids" holds {min(input_ids)}, which is not a token id')
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
        raise MalformedRow(f'"{column}" holds {odd!r}, which is not a whole number')
    return numbers


def _read_mask(values: Mapping[str, Any], column: str, length: int) -> list[bool]:
    marks = values.get(column)
    if not isinstance(marks, list) or any(mark not in (0, 1) for mark in marks):
        raise MalformedRow(f'"{column}" is not a list of 0 and 1')
    _check_length(column, marks, length)
    return [bool(mark) for mark in marks]


def _check_length(column: str, items: Sequence[Any], length: int) -> None:
    if len(items) != length:
        raise MalformedRow(f'"{column}" has {len(items)} items, but "input_ids" has {length}')


def _find_unpadded(values: Mapping[str, Any], length: int) -> tuple[int, int]:
    if values.get("attention_mask") is None:
        return 0, length
    seen = _read_mask(values, "attention_mask", length)
    if not any(seen):
        raise MalformedRow('"attention_mask" is 0 for every token')
    start, end = seen.index(True), length - seen[::-1].index(True)
    if not all(seen[start:end]):
        raise MalformedRow('"attention_mask" is 0 for a token between other tokens')
    return start, end


def _read_targets(values: Mapping[str, Any], input_ids: list[int]) -> tuple[list[bool] | None, str]:
    masks = {
        column: _read_mask(values, column, len(input_ids))
        for column in MASK_ROLES
        if values.get(column) is not None
    }
    if values.get("labels") is not None:
        if masks:
            raise MalformedRow(f'the row has both "labels" and "{next(iter(masks))}"; keep one')
        return _read_labels(values, input_ids), "completion"
    if not masks:
        return None, "text"
    return [all(marks) for marks in zip(*masks.values(), strict=True)], MASK_ROLES[list(masks)[-1]]


def _read_labels(values: Mapping[str, Any], input_ids: list[int]) -> list[bool]:
    labels = _read_numbers(values, "labels")
    _check_length("labels", labels, len(input_ids))
    for position, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        if label not in (token, IGNORED_LABEL):
            detail = (
                f"label {position} is {label}; it must be {IGNORED_LABEL} or the token id {token}"
            )
            raise MalformedRow(detail)
    return [label != IGNORED_LABEL for label in labels]
