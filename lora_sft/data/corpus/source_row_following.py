"""Follow every source row of a data set to its outcome: labelled rows, or a drop with its reason.

The corpus and the preview use the same outcomes, so the preview shows exactly the rows that are
trained. Source rows are converted and labelled in batches on all cores. After that, repeated
examples are searched for in source order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from lora_sft.data.corpus.example_hash import ExampleHasher, hash_json
from lora_sft.data.corpus.parallel_batches import map_batches
from lora_sft.data.corpus.repeated_examples import HashedExample, RepeatedExamples
from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome
from lora_sft.data.corpus.splits import (
    NO_ROW_HASH,
    find_dataset_group_column,
    make_row_hash,
    needs_row_hash,
)
from lora_sft.data.drops import Drop, RowDropped
from lora_sft.data.examples.conversation import Conversation, Example
from lora_sft.data.examples.messages import remove_non_json_extras
from lora_sft.data.examples.row_formats import RowFormat, find_row_format
from lora_sft.data.examples.row_kwargs import read_row_kwargs
from lora_sft.data.labels.chat_label_rule import Notes
from lora_sft.data.labels.labelling import Labeller, LabelResult
from lora_sft.data.labels.length_policy import fit_length
from lora_sft.data.rows.data_files import name_source
from lora_sft.data.rows.row_sources import SourceRow, read_rows
from lora_sft.data.templates.template_keys import TemplateKeys

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection

BATCH_ROWS = 1_000
BATCH_CHARACTERS = 2_000_000  # about 20 MB of text, tokens and offsets
FORMAT_PROBE_ROWS = 20


@dataclass(frozen=True)
class ConvertedSourceRow:
    """A source row, its example, and its hashes (if the recipe needs them)."""

    source_row: SourceRow
    example: Example | Drop
    row_hash: bytes = NO_ROW_HASH
    example_hash: bytes | None = None


@dataclass(frozen=True)
class OpenedDataset:
    """A data set that is ready to be read.

    Attributes:
        row_format: The format of its first rows.
        is_hashed: Whether its rows need hashes.
        group_column: Rows with equal values in this column share a split.
    """

    rows: Iterator[SourceRow]
    row_format: RowFormat | None
    is_hashed: bool
    group_column: str | None


class SourceRowFollower:
    """A reader that converts and labels source rows and applies the length policy, in batches.

    Args:
        template: The tokenizer's chat template or its named templates. The keys in its text decide
            which examples are equal.
    """

    def __init__(
        self,
        data: DataSection,
        labeller: Labeller,
        template: str | Mapping[str, str] | None,
    ) -> None:
        self._data = data
        self._labeller = labeller
        self._keys = TemplateKeys(template)
        self._hasher = ExampleHasher(self._keys, data.chat_template_kwargs)
        self._repeated = RepeatedExamples(data, self._read_hashed_examples)

    def follow(
        self, dataset: DatasetSection, is_skipped: Callable[[bytes], bool] = lambda _: False
    ) -> Iterator[SourceRowOutcome]:
        """Yield the outcome of every source row, in source order.

        Args:
            is_skipped: Returns whether the row with this hash is skipped. It is called before the
                row is labelled.
        """
        opened = self._open(dataset)
        find_repeat = self._repeated.make_repeat_finder(dataset)

        def work(batch: Sequence[SourceRow]) -> tuple[list[SourceRowOutcome], Notes]:
            converted = [self._convert(row, opened) for row in batch]
            wanted = [
                replace(row, example=Drop("subsampled")) if is_skipped(row.row_hash) else row
                for row in converted
            ]
            outcomes = list(self._label(wanted))
            return outcomes, self._labeller.take_notes()

        for _, (outcomes, notes) in map_batches(work, _make_batches(opened.rows)):
            self._labeller.add_notes(notes)
            for outcome in outcomes:
                drop = find_repeat(outcome)
                yield outcome if drop is None else _replace_by_drop(outcome, drop)

    def _label(self, converted: Sequence[ConvertedSourceRow]) -> Iterator[SourceRowOutcome]:
        examples = [
            (each.source_row.where, each.example)
            for each in converted
            if not isinstance(each.example, Drop)
        ]
        labelled = iter(self._labeller.label(examples))
        for each in converted:
            example = each.example
            yield self._fit(each, example if isinstance(example, Drop) else next(labelled))

    def _open(self, dataset: DatasetSection) -> OpenedDataset:
        """Open a data set. Its rows are hashed only if a split or a comparison needs hashes."""
        rows = read_rows(dataset)
        first_rows = list(_take_readable(rows, FORMAT_PROBE_ROWS))
        values = [row.values for row in first_rows if row.drop is None]
        return OpenedDataset(
            rows=chain(first_rows, rows),
            row_format=find_row_format(dataset.format, values, name_source(dataset.path))
            if values
            else None,
            is_hashed=needs_row_hash(self._data, dataset) or self._repeated.needs_hashes,
            group_column=find_dataset_group_column(self._data, dataset),
        )

    def _read_hashed_examples(self, dataset: DatasetSection) -> Iterator[HashedExample]:
        """Yield the source rows of `dataset` that its format can read, with their hashes."""
        opened = self._open(dataset)
        for row in opened.rows:
            converted = self._convert(row, opened)
            if converted.example_hash is not None:
                yield HashedExample(row, converted.row_hash, converted.example_hash)

    def _convert(self, row: SourceRow, opened: OpenedDataset) -> ConvertedSourceRow:
        """Read the example of a source row, and hash it if that is needed.

        Raises: DataError if the source row lacks the group column.
        """
        example = self._read_example(row, opened.row_format)
        if not opened.is_hashed:
            return ConvertedSourceRow(row, example)
        if row.drop is not None:
            return ConvertedSourceRow(row, example, hash_json("row", row.where))
        if isinstance(example, Drop):
            row_hash = make_row_hash(row, hash_json("row", row.values), opened.group_column)
            return ConvertedSourceRow(row, example, row_hash)
        content_hash = self._hasher.hash_content(example)
        return ConvertedSourceRow(
            row,
            example,
            make_row_hash(row, content_hash, opened.group_column),
            self._hasher.hash_example(example, content_hash)
            if self._repeated.needs_hashes
            else None,
        )

    def _read_example(self, row: SourceRow, row_format: RowFormat | None) -> Example | Drop:
        if row.drop is not None:
            return row.drop
        assert row_format is not None, "a data set with a row that was read has a format"
        try:
            example = row_format.read(row.values)
            if not isinstance(example, Conversation):
                return example
            return self._with_row_kwargs(self._with_json_extras(example), row)
        except RowDropped as dropped:
            return dropped.drop

    def _with_json_extras(self, conversation: Conversation) -> Conversation:
        """Return the conversation without other keys of messages whose values JSON cannot hold.

        Raises: MalformedRow if the template reads such a key.
        """
        messages = conversation.messages
        if not any(message.extras for message in messages):
            return conversation
        settled = (
            remove_non_json_extras(message, index, self._keys.is_read)
            for index, message in enumerate(messages)
        )
        return replace(conversation, messages=tuple(settled))

    def _with_row_kwargs(self, conversation: Conversation, row: SourceRow) -> Conversation:
        """Return the conversation with the template arguments that its source row sets."""
        recipe_kwargs, own = self._data.chat_template_kwargs, conversation.template_kwargs
        kwargs = read_row_kwargs(row.values, own, recipe_kwargs) if recipe_kwargs or own else {}
        return replace(conversation, template_kwargs=kwargs) if kwargs else conversation

    def _fit(self, converted: ConvertedSourceRow, result: LabelResult) -> SourceRowOutcome:
        row, hashes = converted.source_row, (converted.row_hash, converted.example_hash)
        if isinstance(result, Drop):
            return SourceRowOutcome(row, *hashes, drop=result)
        max_length, overlong = self._data.max_length, self._data.overlong
        fitted = [fit_length(each, max_length, overlong, row.where) for each in result]
        kept = tuple(chain.from_iterable(fitted))
        lengths = tuple(len(each.input_ids) for each in result)
        detail = f"{max(lengths)} tokens, max_length is {max_length}"
        return SourceRowOutcome(
            row,
            *hashes,
            labelled_rows=kept,
            drop=None if kept else Drop("overlong", detail),
            labelled_lengths=lengths,
            is_truncated=any(
                0 < sum(len(part.input_ids) for part in parts) < length
                for parts, length in zip(fitted, lengths, strict=True)
            ),
        )


def _replace_by_drop(outcome: SourceRowOutcome, drop: Drop) -> SourceRowOutcome:
    return SourceRowOutcome(outcome.source_row, outcome.row_hash, drop=drop)


def _take_readable(rows: Iterator[SourceRow], number: int) -> Iterator[SourceRow]:
    """Yield the next rows until `number` of them, or all, could be read."""
    for row in rows:
        yield row
        number -= row.drop is None
        if number == 0:
            return


def _make_batches(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    """Yield batches with a limited number of source rows and a limited amount of text."""
    batch: list[SourceRow] = []
    characters = 0
    for row in rows:
        added = _count_characters(row.values)
        if batch and (len(batch) == BATCH_ROWS or characters + added > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += added
    if batch:
        yield batch


def _count_characters(value: Any) -> int:
    """Return roughly how many characters of text a value contains."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_count_characters, value.values()))
    return sum(map(_count_characters, value)) if isinstance(value, list) else 1
