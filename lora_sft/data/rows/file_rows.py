"""Read a file of text row by row: JSON lines, a JSON array, CSV or TSV.

Each reader yields `(line, values)`, the line from 1 where the format has lines, else None. A
fault stops the reading and names the line: a file with a broken row is mended or cut by a
person, because a guess here would be silent. JSON is read by Python and not by a table library,
which would give every object the union of all keys, filled with null.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NoReturn

from lora_sft.data.one_line import make_one_line
from lora_sft.data.rows.data_files import READ_FAULTS, DataFile, unreadable
from lora_sft.data.rows.json_array import ArrayReader
from lora_sft.data.rows.plain_json import parse_json
from lora_sft.errors import DataError

NumberedRow = tuple[int | None, dict[str, Any]]
NumberedLine = tuple[int, str]

LARGEST_CSV_FIELD_CHARACTERS = 2**31 - 1
EXCERPT_CHARACTERS = 60
SPREAD_OBJECT_LINES = 10_000
JSON_KINDS = {
    list: "an array",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def read_json_lines(file: DataFile) -> Iterator[NumberedRow]:
    """One JSON object a line; blank lines are skipped."""
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
    """An array of objects, or JSON lines under a `.json` name."""
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
        _check_is_not_spread(file, chain(head, islice(lines, SPREAD_OBJECT_LINES)))
    return _read_objects(file, chain(head, lines))


def _check_is_not_spread(file: DataFile, lines: Iterable[NumberedLine]) -> None:
    """Raises: DataError where the file begins with an object that spans lines."""
    text = "".join(line for _, line in lines).lstrip()
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return
    raise DataError(
        "the file holds neither an array of rows nor one row a line",
        file.source,
        "write it as [{...}, {...}], or one {...} a line",
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
        _refuse_other_json(error, f"{file.source} row {index + 1}")
    if index < 0:
        refuse_empty(file)


def read_csv(file: DataFile) -> Iterator[NumberedRow]:
    """Comma-separated rows under a header line."""
    return _read_separated(file, ",")


def read_tsv(file: DataFile) -> Iterator[NumberedRow]:
    """Tab-separated rows under a header line."""
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
        fix = "close the quote, or double a quote inside a quoted field"
        raise DataError(f"the row cannot be read: {error}", f"{file.source}:{line}", fix) from error
    if empty:
        refuse_empty(file)


def _check_header(file: DataFile, header: list[str]) -> None:
    if not header:
        refuse_empty(file)
    refuse_repeated(header, f"{file.source}:1")


def refuse_repeated(names: list[str], where: str) -> None:
    """Raises: DataError where two columns have one name: a row would lose one of them."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f'the column "{make_one_line(repeated[0])}" is there more than once',
            where,
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


def _read_lines(file: DataFile) -> Iterator[NumberedLine]:
    """Lines from 1, decoded one by one so that a bad byte has a line. A leading BOM is dropped."""
    number = 0
    try:
        with file.open() as stream:
            for number, line in enumerate(stream, start=1):
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                yield number, _decode(line, encoding, f"{file.source}:{number}")
    except READ_FAULTS as error:
        where = f"{file.source}:{number + 1}" if number else None
        raise unreadable(file, error, where) from error


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
        _refuse_other_json(error, where)


def _refuse_other_json(error: ValueError, where: str) -> NoReturn:
    fix = "write it as plain JSON (null for no value, each key once), or take the row out"
    raise DataError(f"the row is not plain JSON: {error}", where, fix) from error


def _refuse_broken_json(error: json.JSONDecodeError, where: str, lines_before: int = 0) -> NoReturn:
    line = lines_before + error.lineno
    if line > 1:  # an array over several lines: the fault's own beats the file's name
        where = f"{where}:{line}"
    excerpt = error.doc[max(0, error.pos - EXCERPT_CHARACTERS // 2) :][:EXCERPT_CHARACTERS]
    raise DataError(
        f"the line is not valid JSON: {error.msg} at character {error.colno}, near {excerpt!r}",
        where,
        "mend the line or take it out",
    ) from error


def refuse_empty(file: DataFile) -> NoReturn:
    """Raises: DataError, because a file without rows is named by mistake."""
    raise DataError("the file holds no rows", file.source, "name a file with at least one row")
