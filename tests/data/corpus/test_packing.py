"""Packing: each document is whole and occurs once; packed rows are nearly full, never too long."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from lora_sft.data.corpus.packing import (
    PACKED_ROWS_PER_TABLE,
    count_tokens,
    lay_out_documents,
    pack_documents,
)

SIGMA = 0.726


def draw_lengths(count: int, mean: int, max_length: int) -> np.ndarray:
    mu = np.log(mean) - SIGMA**2 / 2
    lengths = np.random.default_rng(1).lognormal(mu, SIGMA, count)
    return lengths.clip(16, max_length).astype(np.int64)


def make_documents(lengths: np.ndarray) -> Dataset:
    """Make documents: document i has the ids i, i + 1, ..., and its labels are their negatives."""
    return Dataset.from_list(
        [
            {
                "input_ids": list(range(number, number + length)),
                "labels": list(range(-number, -number - length, -1)),
            }
            for number, length in enumerate(lengths.tolist())
        ]
    )


def pack_slowly(lengths: list[int], max_length: int) -> list[list[int]]:
    """Pack by best fit decreasing as textbooks describe it, one document after another."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= max_length]
        fullest = max(fitting, key=sum, default=None)
        if fullest is None:
            rows.append([length])
        else:
            fullest.append(length)
    return rows


def list_rows(layout, lengths: np.ndarray) -> list[list[int]]:
    documents = np.split(lengths[layout.documents], layout.starts[1:-1])
    return [row.tolist() for row in documents]


@given(st.integers(1, 40).flatmap(lambda cap: st.tuples(
    st.just(cap), st.lists(st.integers(1, cap), min_size=1, max_size=120)
)))  # fmt: skip
def test_every_document_occurs_once_in_packed_rows_that_are_not_too_long(case):
    max_length, given_lengths = case
    lengths = np.array(given_lengths)
    layout = lay_out_documents(lengths, max_length)
    assert sorted(layout.documents.tolist()) == list(range(len(lengths)))
    rows = list_rows(layout, lengths)
    assert all(0 < sum(row) <= max_length for row in rows)
    assert layout.tokens == sum(map(sum, rows)) == lengths.sum()
    # Two rows may be equally full, and either may be chosen. So only the sums must agree.
    textbook = pack_slowly(given_lengths, max_length)
    assert sorted(map(sum, rows)) == sorted(map(sum, textbook))


def test_packed_rows_hold_the_tokens_of_their_documents_across_tables_and_slices():
    lengths = draw_lengths(3 * PACKED_ROWS_PER_TABLE, 12, 40)
    parts = [make_documents(lengths).select(range(start, start + 500)) for start in (0, 500)]
    sliced = concatenate_datasets(parts)
    whole = make_documents(lengths)
    for documents in (whole, sliced, whole.shuffle(seed=0)):
        layout = lay_out_documents(count_tokens(documents), 40)
        packed = pack_documents(documents, layout)
        assert packed.column_names == ["input_ids", "labels", "seq_lengths"]
        assert len(packed) == layout.num_packed_rows
        seen = []
        for row in packed:
            assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= 40
            starts = np.cumsum([0, *row["seq_lengths"]])
            for start, end in pairwise(starts.tolist()):
                number = row["input_ids"][start]
                seen.append(number)
                assert row["input_ids"][start:end] == whole[number]["input_ids"]
                assert row["labels"][start:end] == whole[number]["labels"]
        assert sorted(seen) == list(range(len(documents)))


def test_packed_columns_are_plain_arrow_lists():
    documents = make_documents(draw_lengths(50, 20, 64))
    packed = pack_documents(documents, lay_out_documents(count_tokens(documents), 64))
    types = {name: packed.data.schema.field(name).type for name in packed.column_names}
    assert set(types.values()) == {pa.list_(pa.int32())}


def test_the_order_is_always_the_same_and_does_not_depend_on_length():
    lengths = draw_lengths(20_000, 150, 2048)
    first, again = lay_out_documents(lengths, 2048), lay_out_documents(lengths, 2048)
    assert np.array_equal(first.documents, again.documents)
    assert np.array_equal(first.starts, again.starts)
    longest = np.array([max(row) for row in list_rows(first, lengths)])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.1


def test_documents_of_equal_length_are_mixed_across_sources():
    lengths = np.full(4_000, 25)
    layout = lay_out_documents(lengths, 100)
    from_first_half = np.split(layout.documents < 2_000, layout.starts[1:-1])
    assert np.mean([row.all() or not row.any() for row in from_first_half]) < 0.25


@pytest.mark.parametrize(("mean", "max_length"), [(150, 2048), (670, 2048), (670, 8192)])
def test_packed_rows_are_at_least_as_full_as_those_of_trl(mean, max_length):
    from trl import pack_dataset

    lengths = draw_lengths(5_000, mean, max_length)
    documents = make_documents(lengths)
    theirs = len(pack_dataset(documents, max_length, "bfd", {}))
    ours = lay_out_documents(lengths, max_length)
    assert ours.num_packed_rows <= theirs
    assert ours.utilisation >= 0.98


def test_a_million_documents_are_laid_out_in_seconds():
    lengths = draw_lengths(1_000_000, 670, 2048)
    start = time.process_time()
    layout = lay_out_documents(lengths, 2048)
    assert time.process_time() - start < 10
    assert layout.utilisation >= 0.995
