"""Find source rows whose example is there before: in their split, or in a held-out one.

Two source rows are the same where they hold the same example (`example_hash`), whatever format they
are written in and whatever stands beside it: a test row is known to the model also where its id
differs, and where other answers of it are learned. For a duplicate these count too: a row that
learns another answer of the same example adds to what is learned. Only source rows that are kept
can repeat others or be repeated in their own split. Where splits are drawn by a fraction, equal
examples share one; with `group_by` they may lie in groups of different splits, and are looked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from lora_sft.data.corpus.example_hash import hash_json
from lora_sft.data.corpus.splits import SplitByFraction, find_group_column, has_fraction
from lora_sft.data.drops import Drop
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome
    from lora_sft.data.rows.row_sources import SourceRow
    from lora_sft.recipe import DataSection, DatasetSection

# A source row that two of them hold stays in the first: what is measured with is not made smaller.
HELD_OUT = ("test", "validation")


class HashedExample(NamedTuple):
    """A source row that its format can read: the hash it is drawn by, and its example's."""

    source_row: SourceRow
    row_hash: bytes
    example_hash: bytes


# The source rows of one data set that its format can read.
ReadHashedExamples = Callable[["DatasetSection"], Iterable[HashedExample]]
# Why a source row is left out after all, if it is.
FindRepeat = Callable[["SourceRowOutcome"], Drop | None]


class Place(NamedTuple):
    """A source row of one data set: a file that two data sets read holds its rows twice."""

    dataset: int
    source: str
    row: int
    where: str


class RepeatedExamples:
    """Judges the source rows of one corpus by `data.duplicates` and `data.overlap`.

    Asked about the same source row again it says the same, so that splits may be read in any order
    and more than once. What is held out is read once before the rows that could repeat it.
    """

    def __init__(self, data: DataSection, read_examples: ReadHashedExamples) -> None:
        self._data = data
        self._read_examples = read_examples
        self._by_fraction = SplitByFraction(data)
        self._first_seen: defaultdict[str, dict[bytes, Place]] = defaultdict(dict)
        self._held_out: dict[bytes, tuple[str, str]] | None = None

    @property
    def are_looked_for(self) -> bool:
        """Whether any source row could be left out: else no example needs its hash."""
        return self._drops_duplicates or self._has_own_data_sets() or self._has_groups

    @property
    def _drops_duplicates(self) -> bool:
        return self._data.duplicates == "drop"

    def follow(self, dataset: DatasetSection) -> FindRepeat:
        """What judges the source rows of `dataset` by what became of them."""
        own_split = self._find_own_split(dataset)

        def find_repeat(outcome: SourceRowOutcome) -> Drop | None:
            digest = outcome.example_hash
            if digest is None or outcome.drop is not None:
                return None
            split = own_split or self._by_fraction.find_split(outcome.row_hash)
            drop = self._find_overlap(digest, split, outcome.source_row.where)
            if drop is not None or not self._drops_duplicates:
                return drop
            row = outcome.source_row
            place = Place(id(dataset), row.source, row.row, row.where)
            first = self._first_seen[split].setdefault(_hash_learned(digest, outcome), place)
            return None if first == place else Drop("duplicate", f"the same as {first.where}")

        return find_repeat

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
        drawn = self._read_drawn() if self._may_repeat_drawn else {}
        for split in HELD_OUT:
            for dataset in self._list_own(split):
                for row, _, digest in self._read_examples(dataset):
                    held_out.setdefault(digest, (split, row.where))
            for digest, where in drawn.get(split, {}).items():
                held_out.setdefault(digest, (split, where))
        return held_out

    @property
    def _has_groups(self) -> bool:
        """Whether equal examples may be drawn apart: else the draw keeps them together."""
        return has_fraction(self._data) and find_group_column(self._data) is not None

    @property
    def _may_repeat_drawn(self) -> bool:
        """Whether a source row could repeat one that a fraction holds out, and not be found there:
        in another group, or among the validation's own rows, which give way to the test's."""
        test = self._data.test
        is_test_drawn = test is not None and test.fraction is not None
        return self._has_groups or (is_test_drawn and bool(self._list_own("validation")))

    def _read_drawn(self) -> dict[str, dict[bytes, str]]:
        """The examples that fractions hold out of the training rows, and where each is first."""
        drawn: defaultdict[str, dict[bytes, str]] = defaultdict(dict)
        for dataset in self._data.datasets:
            for row, row_hash, digest in self._read_examples(dataset):
                split = self._by_fraction.find_split(row_hash)
                if split in HELD_OUT:
                    drawn[split].setdefault(digest, row.where)
        return drawn

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


def _hash_learned(digest: bytes, outcome: SourceRowOutcome) -> bytes:
    """The hash of an example and of which of its tokens are learned."""
    spans = [[(turn.start, turn.end) for turn in row.turns] for row in outcome.labelled_rows]
    return hash_json("learned", [digest.hex(), spans])
