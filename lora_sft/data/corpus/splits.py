"""Decide by a source row's own content which split it belongs to and how often it is repeated.

A source row's place follows from what it says (`example_hash.hash_content`): adding, removing or
reordering others never moves it, nor does another template or another setting, and rows that say
the same share a split, whatever their ids, formats and template arguments. A row that its format
cannot read is drawn by its raw values. With `group_by` the rows of one group share a split: the
first bytes of a row's hash, which draw its split, are then the group's, and equal examples of two
groups are found by `repeated_examples`.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lora_sft.data.one_line import make_one_line
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.data.rows.row_sources import SourceRow
    from lora_sft.recipe import DataSection, DatasetSection, SplitSection

DRAW_BYTES = 8
DRAW_RANGE = 2 ** (8 * DRAW_BYTES)
NOT_DRAWN = bytes(2 * DRAW_BYTES)


def is_drawn(data: DataSection, dataset: DatasetSection) -> bool:
    """Whether the rows of `dataset` are drawn at all, to a split or for a part pass."""
    return _is_divided(data, dataset) or dataset.repeat % 1 != 0


def find_drawn_groups(data: DataSection, dataset: DatasetSection) -> str | None:
    """The column by whose values the rows of `dataset` are drawn to splits, where one is named."""
    return find_group_column(data) if _is_divided(data, dataset) else None


def _is_divided(data: DataSection, dataset: DatasetSection) -> bool:
    return has_fraction(data) and any(dataset is training for training in data.datasets)


def make_row_hash(row: SourceRow, content_hash: bytes, group_column: str | None) -> bytes:
    """What draws the split of a row (its group's part of it, where there are groups) and its
    passes.

    Raises: DataError where the row has no group to be drawn by.
    """
    if group_column is None:
        return content_hash
    return _hash_in_group(row, group_column) + content_hash[DRAW_BYTES:]


def _hash_in_group(row: SourceRow, column: str) -> bytes:
    group = row.values.get(column)
    if group is None:
        raise DataError(
            f'the row has no "{column}" to group by',
            row.where,
            f"the columns are: {make_one_line(', '.join(sorted(row.values)))}; "
            f"name another in group_by, or give every row a {column}",
        )
    return _hash_group(group)


def _hash_group(group: Any) -> bytes:
    """The bytes that draw the split of a group; 7 and "7" are the same group."""
    text = group if isinstance(group, str) else json.dumps(group, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:DRAW_BYTES]


def has_fraction(data: DataSection) -> bool:
    """Whether a held-out split is drawn from the training rows."""
    return any(_get_fraction(section) for section in (data.validation, data.test))


def find_group_column(data: DataSection) -> str | None:
    """The column whose equal values share a split, where there is one."""
    sections = (data.validation, data.test)
    columns = (section.group_by for section in sections if section is not None)
    return next((column for column in columns if column is not None), None)


def get_split_draw(row_hash: bytes) -> float:
    """A number in [0, 1) that places the row in a split."""
    return int.from_bytes(row_hash[:DRAW_BYTES], "big") / DRAW_RANGE


def get_repeat_draw(row_hash: bytes) -> float:
    """A number in [0, 1), independent of the split's, that selects the row for a part pass."""
    return int.from_bytes(row_hash[DRAW_BYTES : 2 * DRAW_BYTES], "big") / DRAW_RANGE


def count_passes(repeat: float, row_hash: bytes) -> int:
    """How often the row is learned an epoch: the whole passes, and one more for a part of rows."""
    whole = int(repeat)
    return whole + (get_repeat_draw(row_hash) < repeat - whole)


class SplitByFraction:
    """Sends the rows of the training data sets to train, validation or test.

    Validation takes draws from the low end and test from the high end, so that adding one does
    not move the rows of the other.
    """

    def __init__(self, data: DataSection) -> None:
        self._validation = _get_fraction(data.validation)
        self._test = _get_fraction(data.test)
        if self._validation + self._test >= 1:
            raise DataError(
                "validation and test together leave no rows to train on",
                "data.validation, data.test",
                "make their fractions add up to less than 1",
            )

    def find_split(self, row_hash: bytes) -> str:
        """The name of the row's split."""
        draw = get_split_draw(row_hash)
        if draw < self._validation:
            return "validation"
        return "test" if draw >= 1 - self._test else "train"


def _get_fraction(split: SplitSection | None) -> float:
    return (split.fraction or 0.0) if split is not None else 0.0
