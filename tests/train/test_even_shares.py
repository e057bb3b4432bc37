"""On several processes an epoch reads every row once, and learns nothing from filler rows."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from lora_sft.train.even_shares import FilledSampler, add_filler_rows


def make_rows(count):
    return Dataset.from_list(
        [{"input_ids": [7, index], "labels": [-100, index]} for index in range(count)]
    )


@pytest.mark.parametrize(("count", "added"), [(41, 3), (40, 0), (1, 3), (7, 1)])
def test_filler_rows_are_never_learned(count, added):
    rows = make_rows(count)
    filled = add_filler_rows(rows, 4)
    assert len(filled) == count + added
    assert filled[:count] == rows[:]
    assert all(set(labels) == {-100} for labels in filled[count:]["labels"])


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize(("processes", "micro"), [(2, 2), (4, 1), (3, 2)])
def test_every_row_is_read_once_in_the_order_of_one_process(shuffled, processes, micro):
    rows = make_rows(41)
    filled = add_filler_rows(rows, processes * micro)
    torch.manual_seed(3)
    order = RandomSampler(rows) if shuffled else SequentialSampler(rows)
    shares = []
    for rank in range(processes):
        sampler = FilledSampler(order, len(rows), len(filled), data_seed=5)
        sampler.set_epoch(1)
        batches = BatchSampler(sampler, micro, drop_last=False)
        shares.append(list(BatchSamplerShard(batches, processes, rank)))
    assert len({len(share) for share in shares}) == 1
    read = [row for rounds in zip(*shares, strict=True) for batch in rounds for row in batch]
    assert sorted(read[: len(rows)]) == list(range(len(rows)))
    assert read[len(rows) :] == list(range(len(rows), len(filled)))
    assert (read[: len(rows)] != list(range(len(rows)))) == shuffled


def test_each_epoch_has_its_own_order():
    rows = make_rows(20)
    sampler = FilledSampler(RandomSampler(rows), 20, 20, data_seed=5)
    sampler.set_epoch(0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert first != second
    assert list(sampler) == first
    assert len(sampler) == 20
