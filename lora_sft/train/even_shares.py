"""The last rows of an epoch, on several processes: everybody gets a batch, nobody a row twice.

accelerate completes the last round of batches with rows from the beginning (1.15
`BatchSamplerShard`, `even_batches`), and those would be trained on once more than on one process.
Here the round is completed with rows of which nothing is learned: the loss is a mean over learned
tokens, so they leave every number as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import RandomSampler, Sampler

from lora_sft.data.labelled_row import IGNORED_LABEL


def fill_up(rows: Dataset, rows_a_round: int) -> Dataset:
    """`rows`, followed by as many unlearned ones as make whole rounds of batches."""
    missing = -len(rows) % rows_a_round
    if missing == 0:
        return rows
    filler = {**rows[0], "labels": [IGNORED_LABEL] * len(rows[0]["labels"])}
    return concatenate_datasets([rows, Dataset.from_list([filler] * missing, rows.features)])


class FilledSampler(Sampler[int]):
    """The order that one process would read the rows in, then the rows that fill up."""

    def __init__(self, order: Any, num_rows: int, num_filled: int, data_seed: int | None) -> None:
        if isinstance(order, RandomSampler):  # as accelerate would replace it
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
        """Each epoch has its own order, the same on every process."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)
