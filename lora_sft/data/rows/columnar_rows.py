"""Read rows that lie in columns: Parquet and Arrow files, and the hub's data sets.

A table has one type for all rows, so an object (struct) holds the keys of every other row as
null: a tool call would get the arguments of all tools, and a template would print them. Nulls
inside objects are therefore left out again. A null that was meant cannot be told from one that
was filled in; who needs it writes JSON lines, or the object as a JSON text. A column that is
null in a row stays null.

Dates, times and durations become their ISO 8601 text, decimals and UUIDs theirs: JSON has no form
of its own for them, and a template would print a placeholder. Bytes stay bytes; a row is malformed
where its format reads them, and a column of pictures beside the text does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from lora_sft.data.one_line import make_one_line
from lora_sft.data.rows.data_files import READ_FAULTS, DataFile, unreadable
from lora_sft.data.rows.file_rows import NumberedRow, refuse_empty, refuse_repeated
from lora_sft.data.rows.plain_json import parse_json
from lora_sft.errors import DataError

BATCH_ROWS = 1_000
ARROW_FILE_MAGIC = b"ARROW1"

# Makes of Arrow's Python value what JSON lines would hold.
Clean = Callable[[Any], Any]
# What a value that Python has no type for, or that is no text after all, raises.
VALUE_FAULTS = (ValueError, OverflowError, TypeError, KeyError, pa.ArrowException)


def read_parquet(file: DataFile) -> Iterator[NumberedRow]:
    """The rows of a Parquet file, a batch in memory at a time."""
    with _reading(file), _open_columns(file) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        yield from _read_batches(file, table.iter_batches(batch_size=BATCH_ROWS))


def read_arrow(file: DataFile) -> Iterator[NumberedRow]:
    """The rows of an Arrow IPC file or stream (`save_to_disk` writes streams), batch by batch."""
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
    """A local file is mapped, so that only what is read takes memory."""
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
        raise unreadable(file, error) from error


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
) -> Iterator[dict[str, Any]]:
    """The rows of one batch, as JSON lines would hold them.

    Raises: DataError with the row's number for a value that cannot be read.
    """
    refuse_repeated(batch.schema.names, source)
    cleaners = {field.name: clean for field in batch.schema if (clean := _make_cleaner(field.type))}
    try:
        rows = _convert(batch, cleaners)
    except VALUE_FAULTS:
        _refuse_first_unreadable(batch, cleaners, source, first_row)
        raise
    yield from rows


def _convert(batch: pa.RecordBatch | pa.Table, cleaners: dict[str, Clean]) -> list[dict[str, Any]]:
    """The rows of a batch, once its insides are known to be whole: Arrow trusts what it reads."""
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
                "mend the row or take it out",
            ) from error


def _make_cleaner(kind: pa.DataType) -> Clean | None:
    """How values of one type are cleaned; None where there is nothing to do."""
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
    """Whether values of a type are written as text. Bytes are not: no text is right for them."""
    is_temporal, is_decimal = pa.types.is_temporal(kind), pa.types.is_decimal(kind)
    return is_temporal or is_decimal or isinstance(kind, pa.UuidType)


def _write_as_text(value: Any) -> str:
    """ISO 8601 for what is a time, as many digits as it has."""
    if hasattr(value, "isoformat"):  # a Timedelta of nanoseconds among them
        return str(value.isoformat())
    if isinstance(value, timedelta):
        return f"PT{_write_seconds(value // timedelta(microseconds=1), 6)}S"
    if isinstance(value, pa.MonthDayNano):
        return f"P{value.months}M{value.days}DT{_write_seconds(value.nanoseconds, 9)}S"
    return str(value)


def _write_seconds(count: int, digits: int) -> str:
    """So many parts of a second, as seconds: no digit is lost, and no zero ends it."""
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
    """A map names its own keys, so that a null in it was meant."""
    values = {str(key): item for key, item in pairs}
    if len(values) < len(pairs):
        raise ValueError("a key of a map is there more than once")
    return {key: _clean_item(item, clean) if clean else item for key, item in values.items()}
