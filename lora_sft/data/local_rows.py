"""Read one local file row by row: JSON lines, JSON, CSV, TSV or Parquet.

Each reader yields `(line, values)`, the line from 1 where the format has lines, else None. A
fault stops the reading and names the line: a file with a broken row is mended or cut by a
person, because a guess here would be silent.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from lora_sft.data.local_files import LocalFile
from lora_sft.errors import DataError

NumberedRow = tuple[int | None, dict[str, Any]]

LARGEST_CSV_FIELD_CHARACTERS = 2**31 - 1
PARQUET_BATCH_ROWS = 1_000
EXCERPT_CHARACTERS = 60
JSON_KINDS = {
    list: "an array",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def read_json_lines(file: LocalFile) -> Iterator[NumberedRow]:
    """One JSON object a line; blank lines are skipped."""
    empty = True
    for number, line in _read_lines(file):
        if line.strip():
            empty = False
            yield number, _parse_object(line.rstrip("\r\n"), f"{file.source}:{number}")
    if empty:
        _refuse_empty(file)


def read_json(file: LocalFile) -> Iterator[NumberedRow]:
    """An array of objects, or JSON lines under a `.json` name."""
    first = next((line.lstrip() for _, line in _read_lines(file) if line.strip()), "")
    if first.startswith("["):
        yield from _read_json_array(file)
    elif _is_one_object_over_lines(file, first):
        raise DataError(
            "the file holds neither an array of rows nor one row a line",
            file.source,
            "write it as [{...}, {...}], or one {...} a line",
        )
    else:
        yield from read_json_lines(file)


def _is_one_object_over_lines(file: LocalFile, first: str) -> bool:
    if not first.startswith("{") or _is_json(first):
        return False
    return _is_json("".join(line for _, line in _read_lines(file)))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_json_array(file: LocalFile) -> Iterator[NumberedRow]:
    text = "".join(line for _, line in _read_lines(file))
    rows = _parse_json(text, file.source)
    if not rows:
        _refuse_empty(file)
    for index, row in enumerate(rows):
        yield None, _as_object(row, f"{file.source} row {index}")


def read_csv(file: LocalFile) -> Iterator[NumberedRow]:
    """Comma-separated rows under a header line."""
    return _read_separated(file, ",")


def read_tsv(file: LocalFile) -> Iterator[NumberedRow]:
    """Tab-separated rows under a header line."""
    return _read_separated(file, "\t")


def _read_separated(file: LocalFile, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(LARGEST_CSV_FIELD_CHARACTERS)
    reader = csv.reader((line for _, line in _read_lines(file)), delimiter=delimiter, strict=True)
    line, empty = 1, True
    try:
        header = next(reader, [])
        _check_header(file, header)
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                empty = False
                yield line, _as_row(fields, header, f"{file.source}:{line}")
            line = reader.line_num + 1
    except csv.Error as error:
        fix = "close the quote, or double a quote inside a quoted field"
        raise DataError(f"the row cannot be read: {error}", f"{file.source}:{line}", fix) from error
    if empty:
        _refuse_empty(file)


def _check_header(file: LocalFile, header: list[str]) -> None:
    if not header:
        _refuse_empty(file)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(
            f'the header names "{repeated[0]}" more than once',
            f"{file.source}:1",
            "give each column a name of its own",
        )


def _as_row(fields: list[str], header: list[str], where: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise DataError(
            f"the row has {len(fields)} fields, the header {len(header)}",
            where,
            "quote fields that hold the separator, or complete the row",
        )
    return dict(zip(header, fields, strict=True))


def read_parquet(file: LocalFile) -> Iterator[NumberedRow]:
    """The rows of a Parquet file, a batch in memory at a time."""
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file.path)
        if table.metadata.num_rows == 0:
            _refuse_empty(file)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for values in batch.to_pylist():
                yield None, values
    except (pyarrow.lib.ArrowException, OSError) as error:
        fix = "write the file again; it may be cut short"
        raise DataError(f"the Parquet file cannot be read: {error}", file.source, fix) from error


def _read_lines(file: LocalFile) -> Iterator[tuple[int, str]]:
    """Lines from 1, decoded one by one so that a bad byte has a line. A leading BOM is dropped."""
    try:
        with file.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                yield number, _decode(line, encoding, f"{file.source}:{number}")
    except OSError as error:
        what = f"the file cannot be opened: {error.strerror}"
        raise DataError(what, file.source, "check its permissions") from error


def _decode(line: bytes, encoding: str, where: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start + 1} of the line is not valid UTF-8",
            where,
            "save the file as UTF-8, for example: iconv -f latin1 -t utf-8 OLD > NEW",
        ) from error


def _parse_object(text: str, where: str) -> dict[str, Any]:
    return _as_object(_parse_json(text, where), where)


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = JSON_KINDS[type(value)]
        raise DataError(f"the row is {kind}, not an object", where, 'write it as {"column": ...}')
    return value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        _refuse_broken_json(error, where)
    except (ValueError, RecursionError) as error:
        fix = "write null, or a number or text that JSON knows, or take the row out"
        raise DataError(f"the row is not plain JSON: {error}", where, fix) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _refuse_broken_json(error: json.JSONDecodeError, where: str) -> NoReturn:
    if error.lineno > 1:  # a file read whole: the fault's own line beats the file's name
        where = f"{where}:{error.lineno}"
    excerpt = error.doc[max(0, error.pos - EXCERPT_CHARACTERS // 2) :][:EXCERPT_CHARACTERS]
    raise DataError(
        f"the line is not valid JSON: {error.msg} at character {error.colno}, near {excerpt!r}",
        where,
        "mend the line or take it out",
    ) from error


def _refuse_empty(file: LocalFile) -> NoReturn:
    raise DataError("the file holds no rows", file.source, "name a file with at least one row")


READERS: dict[str, Callable[[LocalFile], Iterator[NumberedRow]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
