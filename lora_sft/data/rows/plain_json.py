"""Read JSON as strictly as rows need it: nothing lost, nothing that later steps choke on.

Python's reader keeps the last of two equal keys, takes NaN for a number, 1e999 for infinity and
objects as deep as its stack; these would break whatever walks a row next, a template for one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from lora_sft.data.drops import MalformedRow
from lora_sft.data.one_line import make_one_line

DEEPEST_NESTING = 100


def parse_json(text: str) -> Any:
    """The value that `text` holds.

    Raises: ValueError, of which json.JSONDecodeError knows the place; its text is one line.
    """
    try:
        value = DECODER.decode(text)
    except RecursionError:
        _refuse_nesting()
    if text.count("[") + text.count("{") > DEEPEST_NESTING:
        _check_nesting(value)
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends; what follows it is not looked at.

    Raises: ValueError as `parse_json` does.
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
    """The pairs as a dictionary; a key that is there twice would lose one of its values."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{make_one_line(repeated)}" is there more than once')
    return values


def _parse_float(text: str) -> float:
    """The number; one that a double cannot hold would be read as infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {make_one_line(text)} is too large")
    return value


DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_parse_float,
    object_pairs_hook=_refuse_repeated_keys,
)


def check_is_plain(value: Any, name: str) -> None:
    """See that `value` holds only what JSON has a form for, at any depth.

    A template writes all else as a placeholder (bytes of a table as `<bytes>`, for one), and
    infinity as a word that no JSON reader takes.

    Raises: MalformedRow, with the place in `name`.
    """
    found = find_foreign(value)
    if found is not None:
        raise MalformedRow(make_one_line(f"{name}{found}, which is no JSON value"))


def find_foreign(value: Any) -> str | None:
    """The first value that is not JSON's: the way down to it, and what it is."""
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f" is {value}"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if (found := find_foreign(item)) is not None:
                return f".{key}{found}"
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if (found := find_foreign(item)) is not None:
                return f"[{index}]{found}"
        return None
    return f" is of type {type(value).__name__}"


def parse_if_text(value: Any, name: str) -> Any:
    """What a text holds as JSON, and anything else as it is. An empty text is a table's null.

    Raises: MalformedRow, with `name` in its text.
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
    raise ValueError(f"it is nested deeper than {DEEPEST_NESTING} levels")
