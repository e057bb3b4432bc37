"""Read source rows from text files: JSON lines, a JSON array, CSV or TSV.

Each reader yields `(line, values)`. `line` is the number of the line, from 1, or None in a JSON
array. An invalid row stops the reading, and the error names its line. The row is never repaired
here, because the user would not notice a wrong guess. Python reads the JSON, not a table library: a
table library would give every object the keys of all objects, filled with null.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NoReturn

from lora_sft.data.rows.data_files import READ_FAULTS, DataFile, make_read_error
from lora_sft.data.rows.json_array import ArrayReader
from lora_sft.data.rows.plain_json import parse_json
from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

NumberedRow = tuple[int | None, dict[str, Any]]
NumberedLine = tuple[int, str]

LARGEST_CSV_FIELD_CHARACTERS = 2**31 - 1
EXCERPT_CHARACTERS = 60
# A first object that spans more lines than this is reported as a line that is not valid JSON.
LONGEST_OBJECT_LINES = 10_000
JSON_KINDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def read_json_lines(file: DataFile) -> Iterator[NumberedRow]:
    """Yield one row per line. Blank lines are skipped."""
    return _read_objects(file, _read_lines(file))


def _read_objects(file: DataFile, lines: Iterable[NumberedLine]) -> Iterator[NumberedRow]:
    empty = True
    for number, line in lines:
        if line.strip():
            empty = False
            yield number, _parse_object(line.rstrip("\r\n"), f"{file.source}:{number}")
    if empty:
        refuse_empty(file)


def read_json(file: DataFile) -> Iterator[NumberedRow]:
    """Return the rows of a `.json` file: an array of objects, or JSON lines."""
    lines = _read_lines(file)
    head = []
    for numbered in lines:
        head.append(numbered)
        if numbered[1].strip():
            break
    first = head[-1][1].strip() if head else ""
    if first.startswith("["):
        return _read_array(file, chain(head, lines))
    if first.startswith("{") and not _is_json(first):
        _refuse_object_of_many_lines(file, chain(head, islice(lines, LONGEST_OBJECT_LINES)))
    return _read_objects(file, chain(head, lines))


def _refuse_object_of_many_lines(file: DataFile, lines: Iterable[NumberedLine]) -> None:
    """Raise DataError if the file begins with one object over several lines."""
    text = "".join(line for _, line in lines).lstrip()
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return
    raise DataError(
        "the file holds neither an array of rows nor one row per line",
        file.source,
        "write it as [{...}, {...}], or one {...} per line",
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_array(file: DataFile, lines: Iterable[NumberedLine]) -> Iterator[NumberedRow]:
    array = ArrayReader(line for _, line in lines)
    index = -1
    try:
        for index, row in enumerate(array):
            yield None, _as_object(row, f"{file.source} row {index}")
    except json.JSONDecodeError as error:
        _refuse_broken_json(error, file.source, array.lines_before)
    except DataError:
        raise
    except ValueError as error:
        _refuse_lenient_json(error, f"{file.source} row {index + 1}")
    if index < 0:
        refuse_empty(file)


def read_csv(file: DataFile) -> Iterator[NumberedRow]:
    """Yield comma-separated rows. The first line holds the column names."""
    return _read_separated(file, ",")


def read_tsv(file: DataFile) -> Iterator[NumberedRow]:
    """Yield tab-separated rows. The first line holds the column names."""
    return _read_separated(file, "\t")


def _read_separated(file: DataFile, delimiter: str) -> Iterator[NumberedRow]:
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
        fix = 'close the quoted field, and write "" for a quote inside it'
        raise DataError(f"the row cannot be read: {error}", f"{file.source}:{line}", fix) from error
    if empty:
        refuse_empty(file)


def _check_header(file: DataFile, header: list[str]) -> None:
    if not header:
        refuse_empty(file)
    refuse_repeated_columns(header, f"{file.source}:1")


def refuse_repeated_columns(names: list[str], where: str) -> None:
    """Raise DataError if two columns have the same name: a row would lose one of them."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f'the column name "{make_one_line(repeated[0])}" occurs more than once',
            where,
            "give each column a different name",
        )


def _as_row(fields: list[str], header: list[str], where: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise DataError(
            f"the row has {len(fields)} fields, but the header has {len(header)}",
            where,
            "put quotes around fields that hold the separator, or add the missing fields",
        )
    return dict(zip(header, fields, strict=True))


def _read_lines(file: DataFile) -> Iterator[NumberedLine]:
    """Yield each line with its number, from 1. A byte order mark at the start is removed.

    Lines are decoded one by one, so that the error for an invalid byte names its line.
    """
    number = 0
    try:
        with file.open() as stream:
            for number, line in enumerate(stream, start=1):
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                yield number, _decode(line, encoding, f"{file.source}:{number}")
    except READ_FAULTS as error:
        where = f"{file.source}:{number + 1}" if number else None
        raise make_read_error(file, error, where) from error


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
        return parse_json(text)
    except json.JSONDecodeError as error:
        _refuse_broken_json(error, where)
    except ValueError as error:
        _refuse_lenient_json(error, where)


def _refuse_lenient_json(error: ValueError, where: str) -> NoReturn:
    """Raise DataError for JSON that Python would read, but `parse_json` refuses."""
    fix = "write null for a missing value and each key only once, or remove the row"
    raise DataError(f"the JSON of the row is not accepted: {error}", where, fix) from error


def _refuse_broken_json(error: json.JSONDecodeError, where: str, lines_before: int = 0) -> NoReturn:
    line = lines_before + error.lineno
    if line > 1:  # the error is inside an array of several lines, so the file name is not enough
        where = f"{where}:{line}"
    excerpt = error.doc[max(0, error.pos - EXCERPT_CHARACTERS // 2) :][:EXCERPT_CHARACTERS]
    raise DataError(
        f"the line is not valid JSON: {error.msg} at character {error.colno}, near {excerpt!r}",
        where,
        "correct the line or remove it",
    ) from error


def refuse_empty(file: DataFile) -> NoReturn:
    """Raise DataError for a file without rows. Such a file is in the recipe by mistake."""
    raise DataError("the file holds no rows", file.source, "name a file with at least one row")
