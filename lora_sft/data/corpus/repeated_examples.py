"""Find source rows whose example occurs earlier in their split, or in a held-out split.

An overlap is an example of one split that a held-out split also has. Formats, ids and learned
messages do not matter (`example_hash`): the model has seen a test row even if it learned another
answer of it.

A duplicate is an example that occurs twice in one split and learns the same tokens both times. A
row that learns another answer of the same conversation teaches something new. Only source rows that
are kept can be duplicates or have duplicates.

If a fraction chooses the split, equal examples share a split. With `group_by` they may be in groups
of different splits, so overlaps are searched for there too.
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

# An example that both splits have stays in the first: the test split must not become smaller.
HELD_OUT = ("test", "validation")


class HashedExample(NamedTuple):
    """A source row that its format can read, with the two hashes of `example_hash`."""

    source_row: SourceRow
    row_hash: bytes
    example_hash: bytes


# Reads the source rows of one data set that its format can read.
ReadHashedExamples = Callable[["DatasetSection"], Iterable[HashedExample]]
# Returns why a source row is dropped as a repeat, or None.
FindRepeat = Callable[["SourceRowOutcome"], Drop | None]


class Place(NamedTuple):
    """The place of a source row. It names the data set, because two data sets may read one file."""

    dataset: int
    source: str
    row: int
    where: str


class RepeatedExamples:
    """The search for repeated examples in one corpus, by `data.duplicates` and `data.overlap`.

    A source row that is judged again gets the same answer. So splits may be read in any order and
    several times. Held-out rows are read once, before the rows that could repeat them.
    """

    def __init__(self, data: DataSection, read_examples: ReadHashedExamples) -> None:
        self._data = data
        self._read_examples = read_examples
        self._by_fraction = SplitByFraction(data)
        self._first_seen: defaultdict[str, dict[bytes, Place]] = defaultdict(dict)
        self._held_out: dict[bytes, tuple[str, str]] | None = None

    @property
    def needs_hashes(self) -> bool:
        """Whether a source row could be dropped as a repeat. If not, examples need no hash."""
        return self._drops_duplicates or self._has_own_data_sets() or self._has_groups

    @property
    def _drops_duplicates(self) -> bool:
        return self._data.duplicates == "drop"

    def make_repeat_finder(self, dataset: DatasetSection) -> FindRepeat:
        """Return the function that finds repeats among the source rows of `dataset`.

        Call it once for each outcome, in source order.
        """
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
        other, other_where = self._held_out.get(digest, (split, where))
        if other == split:
            return None
        if self._data.overlap == "error":
            raise DataError(
                f"the same row is in two splits, {split} and {other}",
                f"{where} and {other_where}",
                f"remove it from one split, or set data.overlap: drop (removes it from {split})",
            )
        return Drop("overlap", f"{other} has the same example: {other_where}")

    def _read_held_out(self) -> dict[bytes, tuple[str, str]]:
        held_out: dict[bytes, tuple[str, str]] = {}
        from_training = self._read_held_out_by_fraction() if self._may_repeat_fraction else {}
        for split in HELD_OUT:
            for dataset in self._list_own(split):
                for row, _, digest in self._read_examples(dataset):
                    held_out.setdefault(digest, (split, row.where))
            for digest, where in from_training.get(split, {}).items():
                held_out.setdefault(digest, (split, where))
        return held_out

    @property
    def _has_groups(self) -> bool:
        """Whether a fraction divides groups: then equal examples may be in different splits."""
        return has_fraction(self._data) and find_group_column(self._data) is not None

    @property
    def _may_repeat_fraction(self) -> bool:
        """Whether a row of another split may repeat a row that a fraction holds out.

        This is possible in two cases: with groups, or if a fraction makes the test split and the
        validation split has its own data sets.
        """
        test = self._data.test
        is_test_by_fraction = test is not None and test.fraction is not None
        return self._has_groups or (is_test_by_fraction and bool(self._list_own("validation")))

    def _read_held_out_by_fraction(self) -> dict[str, dict[bytes, str]]:
        """Return the examples that fractions hold out, by split, with the first place of each."""
        found: defaultdict[str, dict[bytes, str]] = defaultdict(dict)
        for dataset in self._data.datasets:
            for row, row_hash, digest in self._read_examples(dataset):
                split = self._by_fraction.find_split(row_hash)
                if split in HELD_OUT:
                    found[split].setdefault(digest, row.where)
        return found

    def _list_own(self, split: str) -> list[DatasetSection]:
        section = getattr(self._data, split)
        return (section.datasets or []) if section is not None else []

    def _has_own_data_sets(self) -> bool:
        return any(self._list_own(split) for split in HELD_OUT)

    def _find_own_split(self, dataset: DatasetSection) -> str:
        """Return the held-out split that names `dataset`, or an empty text for training data."""
        for split in HELD_OUT:
            if any(dataset is own for own in self._list_own(split)):
                return split
        return ""


def _hash_learned(digest: bytes, outcome: SourceRowOutcome) -> bytes:
    """Return a hash of an example and of the positions of its learned tokens."""
    spans = [[(turn.start, turn.end) for turn in row.turns] for row in outcome.labelled_rows]
    return hash_json("learned", [digest.hex(), spans])
