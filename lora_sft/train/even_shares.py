"""Give every process the same number of batches per epoch, without training on a row twice.

A round is one batch per process. accelerate completes the last round of an epoch with rows from the
beginning (1.15 `BatchSamplerShard`, `even_batches`). On several processes these rows would be
trained on once more than on one process. Here the round is completed with filler rows, in which no
token is learned. The loss is a mean over learned tokens, so filler rows do not change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import RandomSampler, Sampler

from lora_sft.data.labelled_row import IGNORED_LABEL


def add_filler_rows(rows: Dataset, rows_per_round: int) -> Dataset:
    """Return `rows`, followed by filler rows up to a multiple of `rows_per_round`."""
    missing = -len(rows) % rows_per_round
    if missing == 0:
        return rows
    filler = {**rows[0], "labels": [IGNORED_LABEL] * len(rows[0]["labels"])}
    return concatenate_datasets([rows, Dataset.from_list([filler] * missing, rows.features)])


class FilledSampler(Sampler[int]):
    """A sampler that yields the rows in the order of one process, then the filler rows."""

    def __init__(self, order: Any, num_rows: int, num_filled: int, data_seed: int | None) -> None:
        if isinstance(order, RandomSampler):  # accelerate makes the same replacement
            order = SeedableRandomSampler(order.data_source, data_seed=data_seed)
        self.order = order
        self.filler = range(num_rows, num_filled)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from self.filler

    def __len__(self) -> int:
        assert isinstance(self.order, Sized)
        return len(self.order) + len(self.filler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, which is equal on every process."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)
