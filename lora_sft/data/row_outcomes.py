"""Follow every source row of a data set to its end: supervised rows, or a drop with its reason.

The corpus is built from these outcomes, and whatever shows rows to a person reads the same
ones: what is shown is what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from lora_sft.data.conversation import Conversation, Example
from lora_sft.data.drops import Drop, RowDropped
from lora_sft.data.length_policy import fit_length
from lora_sft.data.row_formats import RowFormat, find_row_format
from lora_sft.data.row_sources import SourceRow, read_rows
from lora_sft.data.splits import hash_row
from lora_sft.data.supervised_row import SupervisedRow
from lora_sft.data.supervision import Supervised, Supervisor

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection

BATCH_ROWS = 1_000
FORMAT_PROBE_ROWS = 20


@dataclass(frozen=True)
class RowOutcome:
    """One source row and what became of it: either `rows` or `drop` says so.

    `num_supervised` counts its rows before the length policy.
    """

    source_row: SourceRow
    row_hash: bytes
    rows: tuple[SupervisedRow, ...] = ()
    drop: Drop | None = None
    num_supervised: int = 0
    is_truncated: bool = False
    longest_tokens: int = 0


class RowFollower:
    """Reads, converts, supervises and fits the rows of a data set, batch by batch."""

    def __init__(self, data: DataSection, supervisor: Supervisor) -> None:
        self._data = data
        self._supervisor = supervisor

    def follow(
        self, dataset: DatasetSection, leaves_out: Callable[[bytes], bool] = lambda _: False
    ) -> Iterator[RowOutcome]:
        """The outcome of every row, in source order.

        `leaves_out` says by a row's hash that it is not wanted, before any work is done on it.
        """
        rows = read_rows(dataset)
        first_rows = list(islice(rows, FORMAT_PROBE_ROWS))
        values = [row.values for row in first_rows]
        row_format = find_row_format(dataset.format, values, dataset.path)
        remaining = chain(first_rows, rows)
        while batch := list(islice(remaining, BATCH_ROWS)):
            yield from self._follow_batch(batch, row_format, leaves_out)

    def _follow_batch(
        self,
        batch: Sequence[SourceRow],
        row_format: RowFormat,
        leaves_out: Callable[[bytes], bool],
    ) -> Iterator[RowOutcome]:
        hashes = [hash_row(row.values) for row in batch]
        converted = [
            Drop("subsampled") if leaves_out(row_hash) else self._convert(row, row_format)
            for row, row_hash in zip(batch, hashes, strict=True)
        ]
        examples = [
            (row.where, example)
            for row, example in zip(batch, converted, strict=True)
            if not isinstance(example, Drop)
        ]
        supervised = iter(self._supervisor.supervise(examples))
        for row, row_hash, example in zip(batch, hashes, converted, strict=True):
            result = example if isinstance(example, Drop) else next(supervised)
            yield self._fit(row, row_hash, result)

    def _convert(self, row: SourceRow, row_format: RowFormat) -> Example | Drop:
        try:
            example = row_format.read(row.values)
        except RowDropped as dropped:
            return dropped.drop
        return self._with_row_kwargs(example, row)

    def _with_row_kwargs(self, example: Example, row: SourceRow) -> Example:
        """A column named like one of the recipe's template kwargs sets it for this row."""
        names = self._data.chat_template_kwargs
        own = {name: row.values[name] for name in names if row.values.get(name) is not None}
        if not own or not isinstance(example, Conversation):
            return example
        kwargs = {**own, **example.template_kwargs}
        return Conversation(example.messages, example.tools, kwargs, example.completion_start)

    def _fit(self, row: SourceRow, row_hash: bytes, result: Supervised) -> RowOutcome:
        if isinstance(result, Drop):
            return RowOutcome(row, row_hash, drop=result)
        max_length, overlong = self._data.max_length, self._data.overlong
        fitted = [fit_length(each, max_length, overlong, row.where) for each in result]
        kept = tuple(each for each in fitted if each is not None)
        longest = max(len(each.input_ids) for each in result)
        detail = f"{longest} tokens, max_length is {max_length}"
        return RowOutcome(
            row,
            row_hash,
            rows=kept,
            drop=None if kept else Drop("overlong", detail),
            num_supervised=len(result),
            is_truncated=any(
                after is not None and after is not before
                for before, after in zip(result, fitted, strict=True)
            ),
            longest_tokens=longest,
        )
