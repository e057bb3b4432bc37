"""Read source rows from JSON files: JSON lines, or a JSON array.

Each reader yields `(line, values)`. `line` is the number of the line, from 1, or None in a JSON
array. A row that is too large is a `Drop` in place of its values. An invalid row stops the reading,
and the error names its line. The row is never repaired here, because the user would not notice a
wrong guess. Python reads the JSON, not a table library: a table library would give every object the
keys of all objects, filled with null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NoReturn

from lora_sft.data.drops import LARGEST_ROW_BYTES, TOO_LARGE, Drop
from lora_sft.data.rows.data_files import DataFile
from lora_sft.data.rows.json_array import ArrayReader
from lora_sft.data.rows.plain_json import parse_json
from lora_sft.data.rows.text_lines import (
    NumberedLine,
    NumberedPiece,
    decode_line,
    decode_pieces,
    join_lines,
    read_pieces,
)
from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

NumberedRow = tuple[int | None, dict[str, Any] | Drop]

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
    return _read_objects(file, join_lines(read_pieces(file)))


def _read_objects(file: DataFile, lines: Iterable[NumberedLine]) -> Iterator[NumberedRow]:
    empty = True
    for number, line in lines:
        where = f"{file.source}:{number}"
        if line is None:
            empty = False
            yield number, TOO_LARGE
            continue
        text = decode_line(line, where)
        if text.strip():
            empty = False
            yield number, _parse_object(text.rstrip("\r\n"), where)
    if empty:
        refuse_empty(file)


def read_json(file: DataFile) -> Iterator[NumberedRow]:
    """Return the rows of a `.json` file: an array of objects, or JSON lines."""
    pieces = read_pieces(file)
    first = next((numbered for numbered in pieces if numbered[1].strip()), (1, b""))
    pieces = chain([first], pieces)
    if first[1].lstrip().startswith(b"["):
        return _read_array(file, pieces, lines_before=first[0] - 1)
    lines = join_lines(pieces)
    first_line = next(lines, (1, b""))
    if (first_line[1] or b"").lstrip().startswith(b"{"):
        _check_is_one_line(file, first_line, lines)
    return _read_objects(file, chain([first_line], lines))


def _check_is_one_line(
    file: DataFile, first_line: NumberedLine, lines: Iterator[NumberedLine]
) -> None:
    """Check that the file does not begin with one object over several lines.

    `lines` is read only if the first line is not valid JSON.

    Raises: DataError if not.
    """
    number, line = first_line
    assert line is not None, "the line begins with an object"
    text = decode_line(line, f"{file.source}:{number}")
    if _is_json(text):
        return
    for number, line in islice(lines, LONGEST_OBJECT_LINES):
        if line is None or len(text) > LARGEST_ROW_BYTES:
            return
        text += decode_line(line, f"{file.source}:{number}")
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
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


def _read_array(
    file: DataFile, pieces: Iterable[NumberedPiece], lines_before: int
) -> Iterator[NumberedRow]:
    array = ArrayReader(decode_pieces(pieces, file.source), lines_before)
    index = -1
    try:
        for index, row in enumerate(array):
            is_read = not isinstance(row, Drop)
            yield None, _as_object(row, f"{file.source} row {index}") if is_read else row
    except json.JSONDecodeError as error:
        _refuse_broken_json(error, file.source, array.lines_before)
    except DataError:
        raise
    except ValueError as error:
        _refuse_lenient_json(error, f"{file.source} row {index + 1}")
    if index < 0:
        refuse_empty(file)


def refuse_repeated_columns(names: list[str], where: str) -> None:
    """Raise DataError if two columns have the same name: a row would lose one of them."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f'the column name "{make_one_line(repeated[0])}" occurs more than once',
            where,
            "give each column a different name",
        )


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
