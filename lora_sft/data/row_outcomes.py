"""Follow every source row of a data set to its end: supervised rows, or a drop with its reason.

The corpus is built from these outcomes, and whatever shows rows to a person reads the same
ones: what is shown is what is trained. Rows are followed a batch at a time and on all cores;
whether a row repeats another is asked afterwards, in the rows' order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from lora_sft.data.chat_rows import Notes
from lora_sft.data.conversation import Conversation, Example
from lora_sft.data.drops import Drop, RowDropped
from lora_sft.data.example_hash import ExampleHasher, hash_content
from lora_sft.data.length_policy import fit_length
from lora_sft.data.parallel_batches import map_batches
from lora_sft.data.repeated_rows import HashedRow, RepeatedRows
from lora_sft.data.row_formats import RowFormat, find_row_format
from lora_sft.data.row_kwargs import read_row_kwargs
from lora_sft.data.row_sources import SourceRow, read_rows
from lora_sft.data.splits import NOT_DRAWN, MakeRowHash, make_row_hasher
from lora_sft.data.supervised_row import SupervisedRow
from lora_sft.data.supervision import Supervised, Supervisor

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection

BATCH_ROWS = 1_000
BATCH_CHARACTERS = 2_000_000  # some 20 MB of text, tokens and offsets
FORMAT_PROBE_ROWS = 20


@dataclass(frozen=True)
class RowOutcome:
    """One source row and what became of it: either `rows` or `drop` says so.

    `supervised_lengths` are the tokens of each of its rows before the length policy.
    `example_hash` tells rows that hold the same example, where the recipe wants them told.
    """

    source_row: SourceRow
    row_hash: bytes
    rows: tuple[SupervisedRow, ...] = ()
    drop: Drop | None = None
    supervised_lengths: tuple[int, ...] = ()
    is_truncated: bool = False
    example_hash: bytes | None = None

    @property
    def num_supervised(self) -> int:
        return len(self.supervised_lengths)

    @property
    def is_expanded(self) -> bool:
        """Whether the source row became several rows (also where only some of them fit)."""
        return max(self.num_supervised, len(self.rows)) > 1

    @property
    def longest_tokens(self) -> int:
        return max(self.supervised_lengths, default=0)


@dataclass(frozen=True)
class ConvertedRow:
    """A row as its format reads it, and the hashes that are needed of it."""

    source_row: SourceRow
    example: Example | Drop
    row_hash: bytes
    example_hash: bytes | None


class RowFollower:
    """Reads, converts, supervises and fits the rows of a data set, batch by batch.

    `template` is the tokenizer's chat template: what it reads of a message makes the example.
    """

    def __init__(
        self,
        data: DataSection,
        supervisor: Supervisor,
        template: str | Mapping[str, str] | None,
    ) -> None:
        self._data = data
        self._supervisor = supervisor
        self._hasher = ExampleHasher(template)
        self._repeated = RepeatedRows(data, self._read_hashed_rows)

    def follow(
        self, dataset: DatasetSection, leaves_out: Callable[[bytes], bool] = lambda _: False
    ) -> Iterator[RowOutcome]:
        """The outcome of every row, in source order.

        `leaves_out` says by a row's hash that it is not wanted, before it is supervised.
        """
        rows, row_format = _open_rows(dataset)
        make_row_hash = make_row_hasher(self._data, dataset)
        find_repeat = self._repeated.follow(dataset)

        def work(batch: Sequence[SourceRow]) -> tuple[list[RowOutcome], Notes]:
            converted = [self._convert(row, row_format, make_row_hash) for row in batch]
            wanted = [
                replace(row, example=Drop("subsampled")) if leaves_out(row.row_hash) else row
                for row in converted
            ]
            outcomes = list(self._supervise(wanted))
            return outcomes, self._supervisor.take_notes()

        for _, (outcomes, notes) in map_batches(work, _make_batches(rows)):
            self._supervisor.add_notes(notes)
            for outcome in outcomes:
                drop = find_repeat(outcome)
                yield outcome if drop is None else _leave_out(outcome, drop)

    def _supervise(self, converted: Sequence[ConvertedRow]) -> Iterator[RowOutcome]:
        examples = [
            (each.source_row.where, each.example)
            for each in converted
            if not isinstance(each.example, Drop)
        ]
        supervised = iter(self._supervisor.supervise(examples))
        for each in converted:
            if isinstance(each.example, Drop):
                yield RowOutcome(each.source_row, each.row_hash, drop=each.example)
            else:
                outcome = self._fit(each.source_row, each.row_hash, next(supervised))
                digest = each.example_hash
                yield outcome if digest is None else replace(outcome, example_hash=digest)

    def _read_hashed_rows(self, dataset: DatasetSection) -> Iterator[HashedRow]:
        """The rows of `dataset` that its format can read."""
        rows, row_format = _open_rows(dataset)
        make_row_hash = make_row_hasher(self._data, dataset)
        for row in rows:
            converted = self._convert(row, row_format, make_row_hash)
            if converted.example_hash is not None:
                yield HashedRow(row, converted.row_hash, converted.example_hash)

    def _convert(
        self, row: SourceRow, row_format: RowFormat, make_row_hash: MakeRowHash | None
    ) -> ConvertedRow:
        """Read the row, and hash it where it is drawn or compared: else that is time for nothing.

        Raises: DataError where the row has no group to be drawn by.
        """
        example = self._read_example(row, row_format)
        if make_row_hash is None and not self._repeated.are_looked_for:
            return ConvertedRow(row, example, NOT_DRAWN, None)
        if isinstance(example, Drop):
            content_hash, example_hash = hash_content("row", row.values), None
        else:
            content_hash = example_hash = self._hasher.hash(example)
        row_hash = NOT_DRAWN if make_row_hash is None else make_row_hash(row, content_hash)
        return ConvertedRow(row, example, row_hash, example_hash)

    def _read_example(self, row: SourceRow, row_format: RowFormat) -> Example | Drop:
        try:
            return self._with_row_kwargs(row_format.read(row.values), row)
        except RowDropped as dropped:
            return dropped.drop

    def _with_row_kwargs(self, example: Example, row: SourceRow) -> Example:
        """A column named like one of the recipe's template kwargs sets it for this row."""
        own = read_row_kwargs(row.values, self._data.chat_template_kwargs)
        if not own or not isinstance(example, Conversation):
            return example
        kwargs = {**own, **example.template_kwargs}
        return Conversation(example.messages, example.tools, kwargs, example.completion_start)

    def _fit(self, row: SourceRow, row_hash: bytes, result: Supervised) -> RowOutcome:
        if isinstance(result, Drop):
            return RowOutcome(row, row_hash, drop=result)
        max_length, overlong = self._data.max_length, self._data.overlong
        fitted = [fit_length(each, max_length, overlong, row.where) for each in result]
        kept = tuple(chain.from_iterable(fitted))
        lengths = tuple(len(each.input_ids) for each in result)
        detail = f"{max(lengths)} tokens, max_length is {max_length}"
        return RowOutcome(
            row,
            row_hash,
            rows=kept,
            drop=None if kept else Drop("overlong", detail),
            supervised_lengths=lengths,
            is_truncated=any(
                0 < sum(len(part.input_ids) for part in parts) < length
                for parts, length in zip(fitted, lengths, strict=True)
            ),
        )


def _leave_out(outcome: RowOutcome, drop: Drop) -> RowOutcome:
    return RowOutcome(outcome.source_row, outcome.row_hash, drop=drop)


def _make_batches(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    """Batches that are bounded in rows and in text."""
    batch: list[SourceRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += _count_characters(row.values)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _count_characters(value: Any) -> int:
    """Roughly how much text a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_count_characters, value.values()))
    return sum(map(_count_characters, value)) if isinstance(value, list) else 1


def _open_rows(dataset: DatasetSection) -> tuple[Iterator[SourceRow], RowFormat]:
    """The rows of `dataset`, and the format that the first of them are in."""
    rows = read_rows(dataset)
    first_rows = list(islice(rows, FORMAT_PROBE_ROWS))
    values = [row.values for row in first_rows]
    row_format = find_row_format(dataset.format, values, dataset.path)
    return chain(first_rows, rows), row_format
