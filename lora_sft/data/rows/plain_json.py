"""Read JSON more strictly than Python: refuse values that would be lost or break a later step.

Python's reader keeps only the last of two equal keys. It reads NaN as a number and 1e999 as
infinity. It accepts objects as deep as its stack, and such an object breaks a later step, for
example the template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from lora_sft.data.drops import MalformedRow
from lora_sft.shown_text import make_one_line

DEEPEST_NESTING = 100


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises: ValueError, with a message of one line, if the text is not JSON or its value is
        refused. It is a json.JSONDecodeError, with the position, if the text is not JSON.
    """
    try:
        value = DECODER.decode(text)
    except RecursionError:
        _refuse_nesting()
    if text.count("[") + text.count("{") > DEEPEST_NESTING:
        _check_nesting(value)
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at `start`, and its end. The text after it is not read.

    Raises: ValueError, as `parse_json` does.
    """
    try:
        value, end = DECODER.raw_decode(text, start)
    except RecursionError:
        _refuse_nesting()
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST_NESTING:
        _check_nesting(value)
    return value, end


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. A repeated key is an error: it would lose a value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{make_one_line(repeated)}" occurs more than once')
    return values


def _parse_float(text: str) -> float:
    """Return the number. A number too large for a double is an error, and not infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {make_one_line(text)} is too large")
    return value


DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_parse_float,
    object_pairs_hook=_refuse_repeated_keys,
)


def check_is_json_value(value: Any, name: str) -> None:
    """Check that JSON can hold `value` and everything inside it.

    A template would write a placeholder for any other value, for example `<bytes>` for bytes. For
    infinity it would write a word that no JSON reader accepts.

    Raises: MalformedRow, with `name` and the path inside the value, if JSON cannot hold it.
    """
    found = find_non_json_value(value)
    if found is not None:
        raise MalformedRow(make_one_line(f"{name}{found}, which JSON cannot hold"))


def find_non_json_value(value: Any) -> str | None:
    """Describe the first value that JSON cannot hold: its path, and its type or number.

    For example `.score is nan`, or `[0].picture is of type bytes`. None if JSON can hold all.
    """
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f" is {value}"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if (found := find_non_json_value(item)) is not None:
                return f".{key}{found}"
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if (found := find_non_json_value(item)) is not None:
                return f"[{index}]{found}"
        return None
    return f" is of type {type(value).__name__}"


def parse_if_string(value: Any, name: str) -> Any:
    """Return the JSON value of a string, and any other value unchanged.

    An empty string gives None, because a CSV file has no other form for null.

    Raises: MalformedRow, with `name`, if a string is not valid JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value)
    except ValueError as error:
        raise MalformedRow(f"{name} is not valid JSON: {error}") from error


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_NESTING):
        level = [
            child
            for container in level
            if isinstance(container, dict | list)
            for child in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    _refuse_nesting()


def _refuse_nesting() -> NoReturn:
    raise ValueError(f"the value is nested deeper than {DEEPEST_NESTING} levels")
