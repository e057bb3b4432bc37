"""Choose the split of a source row, and how often it is repeated, from its content.

The row's content is hashed (`example_hash.hash_content`), and the hash gives two numbers in [0, 1).
One number chooses the split, and the other selects the row for a partial pass. So a row never moves
to another split because other rows were added, removed or reordered, or because of another template
or setting. Rows with equal content share a split, even if ids, formats or template arguments
differ. If the format cannot read a row, its raw values are hashed.

With `group_by`, the rows of one group share a split. The first bytes of a row's hash choose the
split, and they then come from the group. Equal examples in two groups may be in two splits;
`repeated_examples` finds them.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

if TYPE_CHECKING:
    from lora_sft.data.rows.row_sources import SourceRow
    from lora_sft.recipe import DataSection, DatasetSection, SplitSection

NUMBER_BYTES = 8  # of a row hash, for each of its two numbers
NUMBER_RANGE = 2 ** (8 * NUMBER_BYTES)
NO_ROW_HASH = bytes(2 * NUMBER_BYTES)


def needs_row_hash(data: DataSection, dataset: DatasetSection) -> bool:
    """Return whether a hash chooses the split or the partial pass of the rows of `dataset`."""
    return _is_divided(data, dataset) or dataset.repeat % 1 != 0


def find_dataset_group_column(data: DataSection, dataset: DatasetSection) -> str | None:
    """Return the column whose equal values share a split, or None if `dataset` is not divided."""
    return find_group_column(data) if _is_divided(data, dataset) else None


def _is_divided(data: DataSection, dataset: DatasetSection) -> bool:
    """Return whether a fraction divides the rows of `dataset` between splits."""
    return has_fraction(data) and any(dataset is training for training in data.datasets)


def make_row_hash(row: SourceRow, content_hash: bytes, group_column: str | None) -> bytes:
    """Return the hash that chooses the split of a row and its number of passes.

    With groups, the part that chooses the split comes from the row's group.

    Raises: DataError if the row lacks the group column.
    """
    if group_column is None:
        return content_hash
    return _hash_in_group(row, group_column) + content_hash[NUMBER_BYTES:]


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
    """Return the bytes that choose the split of a group; 7 and "7" are the same group."""
    text = group if isinstance(group, str) else json.dumps(group, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:NUMBER_BYTES]


def has_fraction(data: DataSection) -> bool:
    """Return whether a fraction of the training rows is held out."""
    return any(_get_fraction(section) for section in (data.validation, data.test))


def find_group_column(data: DataSection) -> str | None:
    """Return the recipe's group column (rows with equal values in it share a split), or None."""
    sections = (data.validation, data.test)
    columns = (section.group_by for section in sections if section is not None)
    return next((column for column in columns if column is not None), None)


def get_split_number(row_hash: bytes) -> float:
    """Return the number in [0, 1) that chooses the split of a row."""
    return int.from_bytes(row_hash[:NUMBER_BYTES], "big") / NUMBER_RANGE


def get_pass_number(row_hash: bytes) -> float:
    """Return the number in [0, 1) that selects a row for the partial pass."""
    return int.from_bytes(row_hash[NUMBER_BYTES : 2 * NUMBER_BYTES], "big") / NUMBER_RANGE


def count_passes(repeat: float, row_hash: bytes) -> int:
    """Return how often the row is learned per epoch.

    This is once per whole pass, and once more if the row is in the partial pass.
    """
    whole = int(repeat)
    return whole + (get_pass_number(row_hash) < repeat - whole)


class SplitByFraction:
    """The choice between train, validation and test for rows of the training data sets.

    Validation takes the rows with the smallest numbers, and test the rows with the largest. So a
    new validation split never moves the rows of the test split, and the reverse.
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
        """Return the name of the row's split."""
        number = get_split_number(row_hash)
        if number < self._validation:
            return "validation"
        return "test" if number >= 1 - self._test else "train"


def _get_fraction(split: SplitSection | None) -> float:
    return (split.fraction or 0.0) if split is not None else 0.0
