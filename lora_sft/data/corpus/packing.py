"""Put whole documents into packed rows of at most `max_length` tokens, so that no slot is padding.

A document is a labelled row that is to be packed: the literature's word for it.

Best fit decreasing over the whole set: the longest document first, each into the fullest packed row
that still holds it. A document is never cut and a packed row never longer than asked for. TRL packs
in groups of 1,000 documents and leaves a badly filled packed row or more in each; over the whole
set hardly any is left.

The best fit of one document after another would cost a step of Python for each. But documents of
one length are alike, and so are packed rows with the same space left: as long as a packed row still
holds the next document it is the fullest one that does, so it is filled first. Each (length, space)
pair is therefore placed in one go, with the very result of the slow way (a test compares them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset

from lora_sft.data.corpus.arrow_files import make_scratch_folder, map_tables, write_tables
from lora_sft.data.labelled_row import IGNORED_LABEL

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

PACKED_COLUMNS = ("input_ids", "labels")
PACKED_SCHEMA = pa.schema({name: pa.list_(pa.int32()) for name in (*PACKED_COLUMNS, "seq_lengths")})
PACKED_ROWS_A_TABLE = 1_000
DOCUMENTS_COUNTED_AT_ONCE = 1_000
# The same documents give the same packed rows whatever the run's seed, which orders them anew for
# every epoch anyway.
ORDER_SEED = 0


@dataclass(frozen=True)
class PackingLayout:
    """Which documents lie in which packed row: number i holds `documents[starts[i]:starts[i + 1]]`.

    Shapes: `documents` [number of documents], each number once; `starts` [packed rows + 1].
    """

    documents: Integers
    starts: Integers
    tokens: int
    max_length: int

    @property
    def num_packed_rows(self) -> int:
        return len(self.starts) - 1

    @property
    def utilisation(self) -> float:
        """The share of the packed rows' token slots that hold a token."""
        return self.tokens / max(1, self.num_packed_rows * self.max_length)


def count_tokens(documents: Dataset) -> Integers:
    """The length of every document, in tokens."""
    return _TokenLists(documents, "input_ids").lengths


def count_learned_tokens(documents: Dataset) -> int:
    """How many tokens of all documents are learned."""
    labels, total = _TokenLists(documents, "labels"), 0
    for first in range(0, len(documents), DOCUMENTS_COUNTED_AT_ONCE):
        part = np.arange(first, min(first + DOCUMENTS_COUNTED_AT_ONCE, len(documents)))
        total += int(np.count_nonzero(labels.gather(part) != IGNORED_LABEL))
    return total


def lay_out_documents(lengths: Integers, max_length: int) -> PackingLayout:
    """Best fit decreasing (Johnson 1973: at most 11/9 of the fewest packed rows, and 6/9 more).

    Documents of one length are taken in a shuffled order, so that those of one source do not end
    up in packed rows of their own; these are shuffled because they come out longest documents
    first, and a trainer that reads them in order would learn from long documents before short ones.

    Units: tokens; every length is from 1 to `max_length`.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= max_length)
    random = np.random.default_rng(ORDER_SEED)
    shuffled = random.permutation(len(lengths))
    descending = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    shelf = _Shelf(max_length)
    placed = [
        rows for length, count in _count_by_length(lengths) for rows in shelf.place(length, count)
    ]
    found = np.concatenate(placed) if placed else np.empty(0, np.int64)
    packed_row_of = random.permutation(shelf.num_packed_rows)[found]
    counts = np.bincount(packed_row_of, minlength=shelf.num_packed_rows)
    return PackingLayout(
        documents=descending[np.argsort(packed_row_of, kind="stable")],
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tokens=int(lengths.sum()),
        max_length=max_length,
    )


def _count_by_length(lengths: Integers) -> Iterator[tuple[int, int]]:
    """Every length with the number of its documents, the longest first."""
    values, counts = np.unique(lengths, return_counts=True)
    return zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True)


class _Shelf:
    """Packed rows by the space that is left in them; each has a number and nothing else."""

    def __init__(self, max_length: int) -> None:
        self.num_packed_rows = 0
        self._max_length = max_length
        self._by_space: list[list[Integers]] = [[] for _ in range(max_length)]
        self._is_there = bytearray(max_length)  # one flag a space: `find` is one C call

    def place(self, length: int, count: int) -> Iterator[Integers]:
        """The packed rows for `count` documents of `length`, the fullest that fit first."""
        while count:
            space = self._is_there.find(1, length)
            if space < 0:
                space = self._max_length
            per_row = space // length
            rows = self._take(space, -(-count // per_row))
            num_placed = min(count, len(rows) * per_row)
            num_full, rest = divmod(num_placed, per_row)
            self._put(rows[:num_full], space - per_row * length)
            if rest:
                self._put(rows[num_full:], space - rest * length)
            yield np.repeat(rows, per_row)[:num_placed]
            count -= num_placed

    def _take(self, space: int, wanted: int) -> Integers:
        """At most `wanted` packed rows with this space; new ones where it is a whole row's."""
        if space == self._max_length:
            self.num_packed_rows += wanted
            return np.arange(self.num_packed_rows - wanted, self.num_packed_rows)
        stack, taken = self._by_space[space], []
        while stack and wanted:
            rows = stack.pop()
            taken.append(rows[:wanted])
            if len(rows) > wanted:
                stack.append(rows[wanted:])
            wanted -= len(taken[-1])
        self._is_there[space] = bool(stack)
        return np.concatenate(taken)

    def _put(self, rows: Integers, space: int) -> None:
        if space and len(rows):
            self._by_space[space].append(rows)
            self._is_there[space] = True


def pack_documents(documents: Dataset, layout: PackingLayout) -> Dataset:
    """The packed rows of a layout: `input_ids` and `labels` of its documents, and `seq_lengths`.

    Arrow buffers are cut and joined into a file that nobody keeps; no token becomes a Python
    object, and the packed rows are in memory only while they are read.
    """
    columns = {name: _TokenLists(documents, name) for name in PACKED_COLUMNS}
    lengths = columns["input_ids"].lengths[layout.documents]
    num_rows = layout.num_packed_rows
    tables = (
        _make_table(columns, lengths, layout, first, min(first + PACKED_ROWS_A_TABLE, num_rows))
        for first in range(0, num_rows, PACKED_ROWS_A_TABLE)
    )
    with make_scratch_folder() as folder:
        path = folder / "packed.arrow"
        write_tables(path, tables, PACKED_SCHEMA)
        return map_tables([path], PACKED_SCHEMA, f"packed-{documents._fingerprint}")


def _make_table(
    columns: dict[str, _TokenLists], lengths: Integers, layout: PackingLayout, first: int, end: int
) -> pa.Table:
    """The packed rows [first, end)."""
    starts = layout.starts[first : end + 1]
    inside = slice(starts[0], starts[-1])
    tokens_before = np.concatenate([[0], np.cumsum(lengths[inside])])
    row_starts = tokens_before[starts - starts[0]]
    arrays = {
        name: _make_lists(row_starts, column.gather(layout.documents[inside]))
        for name, column in columns.items()
    }
    arrays["seq_lengths"] = _make_lists(starts - starts[0], lengths[inside])
    return pa.table(arrays)


def _make_lists(starts: Integers, values: Integers) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(values, pa.int32()))


def _find_order(documents: Dataset) -> Any:
    """Where the documents lie in their table: a data set that was selected from keeps the table."""
    selected = documents._indices
    return slice(None) if selected is None else selected.column(0).to_numpy()


class _TokenLists:
    """A column of token lists as flat numbers: where each list starts, and its values."""

    def __init__(self, documents: Dataset, name: str) -> None:
        chunks = documents.data.column(name).chunks
        offsets = [chunk.offsets.to_numpy().astype(np.int64) for chunk in chunks]
        order = _find_order(documents)
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._chunk_of = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])[order]
        self._starts = np.concatenate([each[:-1] for each in offsets])[order]
        self._ends = np.concatenate([each[1:] for each in offsets])[order]

    @property
    def lengths(self) -> Integers:
        lengths: Integers = self._ends - self._starts
        return lengths

    def gather(self, documents: Integers) -> Integers:
        """The values of these lists, one after another."""
        places = zip(
            self._chunk_of[documents].tolist(),
            self._starts[documents].tolist(),
            self._ends[documents].tolist(),
            strict=True,
        )
        return np.concatenate([self._values[chunk][start:end] for chunk, start, end in places])
