"""Pack labelled rows into packed rows of at most `max_length` tokens, to avoid padding.

A labelled row that is packed is called a document here, as in the literature.

The method is best fit decreasing over the whole split. The longest document is placed first, and
each document goes into the fullest packed row that still has space for it. A document is never cut,
and a packed row is never longer than `max_length`. TRL packs groups of 1,000 documents, and at
least one packed row of each group is badly filled. Over the whole split, hardly any is.

To place each document separately would take one Python step per document. But documents of equal
length can be exchanged, and so can packed rows with equal remaining space. A packed row that
receives a document stays the fullest one until the next document no longer fits. So documents of
one length are placed into packed rows with one remaining space in a single step. The result is the
same; a test compares the two.
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
PACKED_ROWS_PER_TABLE = 1_000
DOCUMENTS_COUNTED_AT_ONCE = 1_000
# Equal documents give equal packed rows with any seed of the run. The run shuffles the packed rows
# for every epoch.
ORDER_SEED = 0


@dataclass(frozen=True)
class PackingLayout:
    """The documents of each packed row: row i holds `documents[starts[i]:starts[i + 1]]`.

    Shapes: `documents` [number of documents], each index once; `starts` [packed rows + 1].
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
    """Return the length of every document, in tokens."""
    return _TokenLists(documents, "input_ids").lengths


def count_learned_tokens(documents: Dataset) -> int:
    """Return how many tokens of all documents are learned."""
    labels, total = _TokenLists(documents, "labels"), 0
    for first in range(0, len(documents), DOCUMENTS_COUNTED_AT_ONCE):
        part = np.arange(first, min(first + DOCUMENTS_COUNTED_AT_ONCE, len(documents)))
        total += int(np.count_nonzero(labels.gather(part) != IGNORED_LABEL))
    return total


def lay_out_documents(lengths: Integers, max_length: int) -> PackingLayout:
    """Assign every document to a packed row by best fit decreasing.

    Documents of equal length are shuffled first. Otherwise documents of one source would often be
    packed only with each other. The packed rows are shuffled last. Otherwise a trainer that reads
    them in order would learn from long documents before short ones.

    Units: tokens; every length is from 1 to `max_length`.

    Source: Johnson 1973; at most 11/9 of the smallest number of packed rows, plus 6/9.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() <= max_length)
    random = np.random.default_rng(ORDER_SEED)
    shuffled = random.permutation(len(lengths))
    descending = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    packed_rows = _PackedRowsBySpace(max_length)
    placed = [
        rows
        for length, count in _count_by_length(lengths)
        for rows in packed_rows.place(length, count)
    ]
    found = np.concatenate(placed) if placed else np.empty(0, np.int64)
    packed_row_of = random.permutation(packed_rows.num_packed_rows)[found]
    counts = np.bincount(packed_row_of, minlength=packed_rows.num_packed_rows)
    return PackingLayout(
        documents=descending[np.argsort(packed_row_of, kind="stable")],
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tokens=int(lengths.sum()),
        max_length=max_length,
    )


def _count_by_length(lengths: Integers) -> Iterator[tuple[int, int]]:
    """Return every length with the number of its documents, from the longest to the shortest."""
    values, counts = np.unique(lengths, return_counts=True)
    return zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True)


class _PackedRowsBySpace:
    """The indices of packed rows, grouped by the space that is left in them."""

    def __init__(self, max_length: int) -> None:
        self.num_packed_rows = 0
        self._max_length = max_length
        self._by_space: list[list[Integers]] = [[] for _ in range(max_length)]
        self._has_rows = bytearray(max_length)  # one flag per space, so that `find` is one C call

    def place(self, length: int, count: int) -> Iterator[Integers]:
        """Place `count` documents of `length`, and yield the packed row of each document."""
        while count:
            space = self._has_rows.find(1, length)
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
        """Take out at most `wanted` packed rows with this space. Make new rows for a whole row."""
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
        self._has_rows[space] = bool(stack)
        return np.concatenate(taken)

    def _put(self, rows: Integers, space: int) -> None:
        if space and len(rows):
            self._by_space[space].append(rows)
            self._has_rows[space] = True


def pack_documents(documents: Dataset, layout: PackingLayout) -> Dataset:
    """Return the packed rows of a layout, with `input_ids`, `labels` and `seq_lengths`.

    Arrow buffers are cut and joined into a temporary file. No token becomes a Python object, and
    a packed row is in memory only while it is read.
    """
    columns = {name: _TokenLists(documents, name) for name in PACKED_COLUMNS}
    lengths = columns["input_ids"].lengths[layout.documents]
    num_rows = layout.num_packed_rows
    tables = (
        _make_table(columns, lengths, layout, first, min(first + PACKED_ROWS_PER_TABLE, num_rows))
        for first in range(0, num_rows, PACKED_ROWS_PER_TABLE)
    )
    with make_scratch_folder() as folder:
        path = folder / "packed.arrow"
        write_tables(path, tables, PACKED_SCHEMA)
        return map_tables([path], PACKED_SCHEMA, f"packed-{documents._fingerprint}")


def _make_table(
    columns: dict[str, _TokenLists], lengths: Integers, layout: PackingLayout, first: int, end: int
) -> pa.Table:
    """Return the packed rows [first, end) as a table."""
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
    """Return the row numbers of the documents in the table behind them.

    `Dataset.select` keeps the whole table and a list of row numbers. Without that list, the result
    is a slice of all rows.
    """
    selected = documents._indices
    return slice(None) if selected is None else selected.column(0).to_numpy()


class _TokenLists:
    """A column of token lists as flat arrays: the values, and the start and end of each list."""

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
        """Return the values of these documents' lists, one after another."""
        places = zip(
            self._chunk_of[documents].tolist(),
            self._starts[documents].tolist(),
            self._ends[documents].tolist(),
            strict=True,
        )
        return np.concatenate([self._values[chunk][start:end] for chunk, start, end in places])
