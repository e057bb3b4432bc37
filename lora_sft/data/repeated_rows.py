"""Find rows that are there before: twice in a split, or in a held-out split of its own as well.

Two rows are the same where they hold the same example, whatever format they are written in and
whatever columns stand beside it: a test row is known to the model also where its id differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lora_sft.data.conversation import Example
from lora_sft.data.drops import Drop
from lora_sft.data.splits import SplitByFraction
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.data.row_outcomes import RowOutcome
    from lora_sft.data.row_sources import SourceRow
    from lora_sft.recipe import DataSection, DatasetSection

DIGEST_BYTES = 16
# A row that two of them hold stays in the first: what is measured with is not made smaller.
HELD_OUT = ("test", "validation")

# The examples of one data set, each with its row, as its format reads them.
ReadExamples = Callable[["DatasetSection"], Iterable[tuple["SourceRow", Example]]]
# Why a row is left out after all, if it is.
FindRepeat = Callable[["RowOutcome"], Drop | None]


class RepeatedRows:
    """Judges the rows of one corpus by `data.duplicates` and `data.overlap`.

    Asked about the same row again it says the same, so that splits may be read in any order and
    more than once. Held-out data sets are read once before the rows that could repeat them.
    """

    def __init__(self, data: DataSection, read_examples: ReadExamples) -> None:
        self._data = data
        self._read_examples = read_examples
        self._by_fraction = SplitByFraction(data)
        self._first_seen: defaultdict[str, dict[bytes, str]] = defaultdict(dict)
        self._held_out: dict[bytes, tuple[str, str]] | None = None

    @property
    def are_looked_for(self) -> bool:
        """Whether any row could be left out: else no row's example needs its hash."""
        return self._drops_duplicates or self._has_own_data_sets()

    @property
    def _drops_duplicates(self) -> bool:
        return self._data.duplicates == "drop"

    def follow(self, dataset: DatasetSection) -> FindRepeat:
        """What judges the rows of `dataset` by what became of them."""
        own_split = self._find_own_split(dataset)

        def find_repeat(outcome: RowOutcome) -> Drop | None:
            if outcome.example_hash is None:
                return None
            split = own_split or self._by_fraction.find_split(outcome.row_hash)
            return self._judge(outcome.example_hash, split, outcome.source_row.where)

        return find_repeat

    def _judge(self, digest: bytes, split: str, where: str) -> Drop | None:
        drop = self._find_overlap(digest, split, where)
        if drop is not None or not self._drops_duplicates:
            return drop
        first = self._first_seen[split].setdefault(digest, where)
        return None if first == where else Drop("duplicate", f"the same as {first}")

    def _find_overlap(self, digest: bytes, split: str, where: str) -> Drop | None:
        if self._held_out is None:
            self._held_out = self._read_held_out()
        other, there = self._held_out.get(digest, (split, where))
        if other == split:
            return None
        if self._data.overlap == "error":
            raise DataError(
                f"the same row is in two splits, {split} and {other}",
                f"{where} and {there}",
                f"take it out of one, or set data.overlap: drop (it then leaves {split})",
            )
        return Drop("overlap", f"{other} holds it: {there}")

    def _read_held_out(self) -> dict[bytes, tuple[str, str]]:
        held_out: dict[bytes, tuple[str, str]] = {}
        for split in HELD_OUT:
            for dataset in self._list_own(split):
                for row, example in self._read_examples(dataset):
                    held_out.setdefault(hash_example(example), (split, row.where))
        return held_out

    def _list_own(self, split: str) -> list[DatasetSection]:
        section = getattr(self._data, split)
        return (section.datasets or []) if section is not None else []

    def _has_own_data_sets(self) -> bool:
        return any(self._list_own(split) for split in HELD_OUT)

    def _find_own_split(self, dataset: DatasetSection) -> str:
        """The held-out split that names `dataset`; empty for a data set of training rows."""
        for split in HELD_OUT:
            if any(dataset is own for own in self._list_own(split)):
                return split
        return ""


def hash_example(example: Example) -> bytes:
    """The fingerprint of what a row holds, whatever the order of its keys."""
    text = json.dumps(example, sort_keys=True, ensure_ascii=False, default=_as_plain)
    kind = type(example).__name__
    digest = hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).digest()
    return digest[:DIGEST_BYTES]


def _as_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return vars(value)
    return str(value)
