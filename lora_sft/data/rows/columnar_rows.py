"""Read source rows from tables: Parquet files, Arrow files and data sets of the Hub.

A column has one type for all rows. An object (in Arrow: a struct) therefore holds a null for every
key that only other rows have. A tool call would get the arguments of all tools, and a template
would print them. So nulls inside objects are removed. A null that the author wrote on purpose looks
the same and is removed too. To keep it, write JSON lines, or store the object as a JSON string. A
column that is null in a row stays null.

Dates, times and durations become ISO 8601 text. Decimals and UUIDs become text too. JSON has no
type for them, and a template would print a placeholder. Bytes stay bytes: a row may have a column
of pictures, and is malformed only if its format reads this column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from lora_sft.data.drops import LARGEST_ROW_BYTES, TOO_LARGE, Drop
from lora_sft.data.rows.data_files import READ_FAULTS, DataFile, make_read_error
from lora_sft.data.rows.file_rows import NumberedRow, refuse_empty, refuse_repeated_columns
from lora_sft.data.rows.plain_json import parse_json
from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

BATCH_ROWS = 1_000
ARROW_FILE_MAGIC = b"ARROW1"

# Turns a Python value from Arrow into the value that JSON lines would hold.
Clean = Callable[[Any], Any]
# Reading a value raises these if Python has no type for it, or if its text is not valid UTF-8.
VALUE_FAULTS = (ValueError, OverflowError, TypeError, KeyError, pa.ArrowException)


def read_parquet(file: DataFile) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file. One batch is in memory at a time."""
    with _reading(file), _open_columns(file) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        yield from _read_batches(file, table.iter_batches(batch_size=BATCH_ROWS))


def read_arrow(file: DataFile) -> Iterator[NumberedRow]:
    """Yield the rows of an Arrow IPC file or stream. `save_to_disk` writes streams."""
    with _reading(file), _open_columns(file) as stream:
        is_file = stream.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
        stream.seek(0)
        batches = _read_arrow_file(stream) if is_file else pa.ipc.open_stream(stream)
        yield from _read_batches(file, batches)


def _read_arrow_file(stream: Any) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(stream)
    return (reader.get_batch(index) for index in range(reader.num_record_batches))


@contextmanager
def _open_columns(file: DataFile) -> Iterator[BinaryIO | pa.NativeFile]:
    """Open a local file as a memory map, and any other file as a seekable stream.

    With a memory map, only the parts that are read take memory.
    """
    if file.path is not None and not file.compression and file.path.stat().st_size:
        with pa.memory_map(str(file.path)) as mapped:
            yield mapped
    else:
        with file.open_seekable() as stream:
            yield stream


@contextmanager
def _reading(file: DataFile) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (*READ_FAULTS, *VALUE_FAULTS) as error:
        raise make_read_error(file, error) from error


def _read_batches(file: DataFile, batches: Iterable[pa.RecordBatch]) -> Iterator[NumberedRow]:
    row = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield from ((None, values) for values in read_columns(part, file.source, row))
            row += part.num_rows
    if row == 0:
        refuse_empty(file)


def read_columns(
    batch: pa.RecordBatch | pa.Table, source: str, first_row: int
) -> Iterator[dict[str, Any] | Drop]:
    """Yield the rows of one batch as JSON lines would hold them. A row may be too large.

    Args:
        batch: Rows that follow each other in the source.
        source: The path that an error names.
        first_row: The number of the batch's first row in the source, from 0.

    Raises: DataError, with the number of the row, if a value cannot be read.
    """
    refuse_repeated_columns(batch.schema.names, source)
    cleaners = {field.name: clean for field in batch.schema if (clean := _make_cleaner(field.type))}
    for part in _split(batch):
        try:
            rows = _convert(part, cleaners)
        except VALUE_FAULTS:
            _refuse_first_unreadable(part, cleaners, source, first_row)
            raise
        yield from (row if _is_small(part, row) else TOO_LARGE for row in rows)
        first_row += part.num_rows


def _split(batch: pa.RecordBatch | pa.Table) -> Iterator[pa.RecordBatch | pa.Table]:
    """Yield a batch in parts that take no more bytes than a row may have, or are one row."""
    if batch.nbytes <= LARGEST_ROW_BYTES or batch.num_rows <= 1:
        yield batch
        return
    middle = batch.num_rows // 2
    yield from _split(batch.slice(0, middle))
    yield from _split(batch.slice(middle))


def _is_small(part: pa.RecordBatch | pa.Table, row: dict[str, Any]) -> bool:
    """Return whether a row keeps the size limit. Values that are not text (images) do not count.

    If the whole part is small, the row is too, and its text is not counted.
    """
    return part.nbytes <= LARGEST_ROW_BYTES or _count_text_bytes(row) <= LARGEST_ROW_BYTES


def _count_text_bytes(value: Any) -> int:
    """Return about how many bytes a value takes as JSON, without values that JSON cannot hold."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(map(_count_text_bytes, value.values()))
    return sum(map(_count_text_bytes, value)) if isinstance(value, list) else 1


def _convert(batch: pa.RecordBatch | pa.Table, cleaners: dict[str, Clean]) -> list[dict[str, Any]]:
    """Return the rows of a batch. Check the batch first: Arrow does not check when it reads."""
    batch.validate(full=True)
    return [_clean_row(values, cleaners) for values in batch.to_pylist()]


def _clean_row(values: dict[str, Any], cleaners: dict[str, Clean]) -> dict[str, Any]:
    for name, clean in cleaners.items():
        if values[name] is not None:
            values[name] = clean(values[name])
    return values


def _refuse_first_unreadable(
    batch: pa.RecordBatch | pa.Table, cleaners: dict[str, Clean], source: str, first_row: int
) -> None:
    for index in range(batch.num_rows):
        try:
            _convert(batch.slice(index, 1), cleaners)
        except VALUE_FAULTS as error:
            raise DataError(
                f"the row cannot be read: {make_one_line(str(error))}",
                f"{source} row {first_row + index}",
                "correct the row or remove it",
            ) from error


def _make_cleaner(kind: pa.DataType) -> Clean | None:
    """Return the function that cleans values of one type; None if they need no cleaning."""
    if isinstance(kind, pa.JsonType):
        return parse_json
    if pa.types.is_struct(kind):
        cleaners = {field.name: _make_cleaner(field.type) for field in kind}
        return lambda value: _without_nulls(value, cleaners)
    if pa.types.is_map(kind):
        clean_value = _make_cleaner(kind.item_type)
        return lambda pairs: _clean_map(pairs, clean_value)
    if _is_list(kind):
        clean_item = _make_cleaner(kind.value_type)
        return clean_item and (lambda items: [_clean_item(item, clean_item) for item in items])
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _make_cleaner(kind.value_type)
    return _write_as_text if _has_no_json_form(kind) else None


def _has_no_json_form(kind: pa.DataType) -> bool:
    """Return whether values of a type become text. Bytes do not: their encoding is unknown."""
    is_temporal, is_decimal = pa.types.is_temporal(kind), pa.types.is_decimal(kind)
    return is_temporal or is_decimal or isinstance(kind, pa.UuidType)


def _write_as_text(value: Any) -> str:
    """Return a time as ISO 8601 text with all its digits, and any other value as `str` does."""
    if hasattr(value, "isoformat"):  # also pandas.Timedelta, for nanoseconds
        return str(value.isoformat())
    if isinstance(value, timedelta):
        return f"PT{_write_seconds(value // timedelta(microseconds=1), 6)}S"
    if isinstance(value, pa.MonthDayNano):
        return f"P{value.months}M{value.days}DT{_write_seconds(value.nanoseconds, 9)}S"
    return str(value)


def _write_seconds(count: int, digits: int) -> str:
    """Return `count` times 10**-`digits` seconds, exactly and without zeros at the end."""
    seconds = format(Decimal(count).scaleb(-digits), "f")
    return seconds.rstrip("0").rstrip(".")


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _clean_item(item: Any, clean: Clean) -> Any:
    return None if item is None else clean(item)


def _without_nulls(value: dict[str, Any], cleaners: dict[str, Clean | None]) -> dict[str, Any]:
    kept = {name: item for name, item in value.items() if item is not None}
    return {name: clean(item) if (clean := cleaners[name]) else item for name, item in kept.items()}


def _clean_map(pairs: list[tuple[Any, Any]], clean: Clean | None) -> dict[str, Any]:
    """Return a map as an object. Its nulls stay, because each row of a map has its own keys.

    Raises: ValueError if a key occurs more than once.
    """
    values = {str(key): item for key, item in pairs}
    if len(values) < len(pairs):
        raise ValueError("a map holds the same key more than once")
    return {key: _clean_item(item, clean) if clean else item for key, item in values.items()}
