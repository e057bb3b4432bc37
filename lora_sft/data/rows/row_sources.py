"""Read the source rows of one data set in their order, each with its place.

A path is first tried as a local file, folder or glob, then as a URL, then as a data set of the Hub.
Rows are streamed: one line, or one batch of a table, is in memory at a time. Rows are not repaired.
An error names the file and the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NoReturn

from lora_sft.data.drops import Drop
from lora_sft.data.rows.columnar_rows import read_arrow, read_parquet
from lora_sft.data.rows.data_files import DataFile, name_source
from lora_sft.data.rows.file_rows import NumberedRow, read_json, read_json_lines
from lora_sft.data.rows.hub_rows import read_hub_rows
from lora_sft.data.rows.local_files import check_files, find_local_files
from lora_sft.data.rows.remote_files import find_remote_files, is_url
from lora_sft.data.rows.separated_rows import read_csv, read_tsv
from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection

RENAME_PROBE_ROWS = 100  # rows that are read before rename_columns is checked

# One reader per ending in `data_files.KINDS`.
READERS: dict[str, Callable[[DataFile], Iterator[NumberedRow]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


@dataclass(frozen=True)
class SourceRow:
    """One row of a data set, as the file holds it.

    Attributes:
        source: The name that is shown for the file or data set (`name_source`).
        row: The number of the row in its source, from 0.
        line: The line where the row begins, from 1; None if the source has no lines.
        values: The values by column; none if `drop` is given.
        drop: Why the row could not be read; None if it was.
    """

    source: str
    row: int
    line: int | None
    values: dict[str, Any]
    drop: Drop | None = None

    @property
    def where(self) -> str:
        """The place for messages: `file.jsonl:1017`, or `file.parquet row 12`."""
        return (
            f"{self.source} row {self.row}" if self.line is None else f"{self.source}:{self.line}"
        )


def read_rows(dataset: DatasetSection) -> Iterator[SourceRow]:
    """Yield every row of `dataset`, with its columns renamed.

    Raises: DataError if a file or a row cannot be read, or a column cannot be renamed.
    """
    rows = _read_unrenamed_rows(dataset)
    return _rename_columns(rows, dataset) if dataset.rename_columns else rows


def _read_unrenamed_rows(dataset: DatasetSection) -> Iterator[SourceRow]:
    files = _find_files(dataset)
    if files is None:
        for row, values in enumerate(read_hub_rows(dataset)):
            yield _make_row(name_source(dataset.path), row, None, values)
        return
    for file in files:
        numbered = enumerate(READERS[file.kind](file))
        for row, (line, values) in numbered:
            yield _make_row(file.source, row, line, values)


def _make_row(source: str, row: int, line: int | None, values: dict[str, Any] | Drop) -> SourceRow:
    if isinstance(values, Drop):
        return SourceRow(source, row, line, {}, values)
    return SourceRow(source, row, line, values)


def _find_files(dataset: DatasetSection) -> list[DataFile] | None:
    """Return the files of `dataset`, local or behind a URL; None for a data set of the Hub."""
    if not is_url(dataset.location):
        return find_local_files(dataset)
    files = find_remote_files(dataset)
    check_files(dataset, files)
    return files


def _rename_columns(rows: Iterator[SourceRow], dataset: DatasetSection) -> Iterator[SourceRow]:
    """Yield the rows with renamed columns, after a check of the first rows.

    The check reads several rows, because rows may have different columns.
    """
    first_rows = list(islice(rows, RENAME_PROBE_ROWS))
    _check_renames(dataset, first_rows)
    for row in chain(first_rows, rows):
        yield _renamed(row, dataset.rename_columns)


def _check_renames(dataset: DatasetSection, first_rows: list[SourceRow]) -> None:
    """Check that the columns to rename exist, and that their new names are free.

    A name is also free if its column is null in all these rows.

    Raises: DataError if not.
    """
    if all(row.drop is not None for row in first_rows):
        return
    cells = [cell for row in first_rows for cell in row.values.items()]
    columns = sorted({column for column, _ in cells})
    filled = {column for column, value in cells if value is not None}
    for theirs, ours in dataset.rename_columns.items():
        if theirs not in columns:
            raise DataError(
                f'rename_columns names the column "{theirs}", but the rows do not have it',
                f"{name_source(dataset.path)}  rename_columns",
                f"the columns are: {make_one_line(', '.join(columns))} (write old name: new name)",
            )
        if ours in filled and ours not in dataset.rename_columns:
            raise DataError(
                f'rename_columns renames "{theirs}" to "{ours}", but this column already exists',
                f"{name_source(dataset.path)}  rename_columns",
                f"also rename the existing column, for example {{{ours}: unused_{ours}}}",
            )
    _check_names_differ(dataset)


def _check_names_differ(dataset: DatasetSection) -> None:
    renamed = list(dataset.rename_columns.values())
    twice = next((name for name in renamed if renamed.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f'rename_columns gives two columns the name "{twice}"',
            f"{name_source(dataset.path)}  rename_columns",
            "rename only one of them to it",
        )


def _renamed(row: SourceRow, renames: dict[str, str]) -> SourceRow:
    values = {renames.get(column, column): value for column, value in row.values.items()}
    if len(values) < len(row.values):
        values = _merge_renamed(row, renames)
    return replace(row, values=values)


def _merge_renamed(row: SourceRow, renames: dict[str, str]) -> dict[str, Any]:
    """Return the values of a row in which two columns get the same name: keep the one not null.

    Only a row after those that `_check_renames` saw can hold both values.

    Raises: DataError if both columns hold a value.
    """
    values: dict[str, Any] = {}
    for column, value in row.values.items():
        name = renames.get(column, column)
        if values.get(name) is None:
            values[name] = value
        elif value is not None:
            _refuse_overwriting(row, renames, name)
    return values


def _refuse_overwriting(row: SourceRow, renames: dict[str, str], ours: str) -> NoReturn:
    theirs = next(column for column in row.values if renames.get(column) == ours != column)
    raise DataError(
        f'rename_columns renames "{theirs}" to "{ours}", but the row already has this column',
        f"{row.where}  rename_columns",
        f"also rename the existing column, for example {{{ours}: unused_{ours}}}",
    )
