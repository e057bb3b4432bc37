"""Read the template kwargs that a row sets in columns of its own.

A CSV knows only texts, and to a template the text "false" is true: a cell is read as the kind of
value that the recipe gives the same argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_sft.data.messages import MalformedRow, check_is_plain
from lora_sft.data.one_line import make_one_line
from lora_sft.data.plain_json import parse_json

# What a value of the recipe's is, to a person; bool comes first, being an int as well.
KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (list, "a list"),
    (Mapping, "an object"),
)


def read_row_kwargs(values: Mapping[str, Any], recipe_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The row's values of the recipe's template kwargs; a null or an empty cell leaves it alone.

    Raises: MalformedRow, with the column, for a value of another kind than the recipe's.
    """
    given = {name: values[name] for name in recipe_kwargs if values.get(name) is not None}
    own = {name: _read_kwarg(name, value, recipe_kwargs[name]) for name, value in given.items()}
    return {name: value for name, value in own.items() if value is not None}


def _read_kwarg(column: str, value: Any, example: Any) -> Any:
    """The value of one cell; None where it is empty and no text is asked for."""
    kind = _find_kind(example)
    if kind is not None and isinstance(value, str):
        if not value.strip():
            return None
        value = _parse_cell(column, value, kind)
    if kind is not None and _find_kind(value) != kind:
        raise _malformed(column, value, kind)
    check_is_plain(value, column)
    return value


def _find_kind(value: Any) -> str | None:
    """What `value` is to a person; None for a text, a null, and what the recipe cannot hold."""
    return next((name for types, name in KINDS if isinstance(value, types)), None)


def _parse_cell(column: str, text: str, kind: str) -> Any:
    """The cell as JSON, where spreadsheets and Python write True and FALSE as well."""
    word = text.strip().lower()
    try:
        return parse_json(word if word in ("true", "false") else text)
    except ValueError as error:
        raise _malformed(column, text, kind) from error


def _malformed(column: str, value: Any, kind: str) -> MalformedRow:
    shown = make_one_line(repr(value))
    return MalformedRow(
        f'"{make_one_line(column)}" is {shown}, not {kind} as in the recipe\'s chat_template_kwargs'
    )
