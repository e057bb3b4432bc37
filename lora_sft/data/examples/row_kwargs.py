"""Read the template kwargs that a source row sets, in columns of its own or in one object.

A CSV knows only texts, and to a template the text "false" is true: a value is read as the kind
that the recipe gives the same argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.one_line import make_one_line
from lora_sft.data.rows.plain_json import check_is_json_value, parse_json

TRUTH_WORDS = ("true", "false")
# What a value of the recipe's is, to a person; bool comes first, being an int as well.
KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (list, "a list"),
    (Mapping, "an object"),
)


def read_row_kwargs(
    values: Mapping[str, Any], own: Mapping[str, Any], recipe_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The template kwargs that a row sets: those of the recipe in columns of their names, and its
    `own` object's, which win. A null or an empty cell leaves the recipe's value alone; a null that
    stands in the object is its value, for JSON writes only those that are meant.

    Raises: MalformedRow, with the column, for a value of another kind than the recipe's.
    """
    cells = {name: cell for name in recipe_kwargs if (cell := values.get(name)) not in (None, "")}
    in_columns = {
        name: _read_kwarg(name, cell, recipe_kwargs[name])
        for name, cell in cells.items()
        if name not in own and not (isinstance(cell, str) and cell.isspace())
    }
    in_object = {
        name: _read_kwarg(name, value, recipe_kwargs.get(name)) for name, value in own.items()
    }
    return in_columns | in_object


def _read_kwarg(column: str, value: Any, example: Any) -> Any:
    """The value as the kind that `example` is; 0 and 1 are what tables make of truth values."""
    kind = _find_kind(example)
    if value is None:
        return None
    if isinstance(value, str):
        value = _read_text(column, value, example)
    if isinstance(example, bool) and isinstance(value, int | float) and value in (0, 1):
        value = bool(value)
    if kind is not None and _find_kind(value) != kind:
        raise _malformed(column, value, kind)
    check_is_json_value(value, column)
    return value


def _read_text(column: str, text: str, example: Any) -> Any:
    """A text as the kind of value that `example` is. Raises: MalformedRow."""
    kind = _find_kind(example)
    if kind is not None:
        return _parse_cell(column, text, kind)
    if example is None and text.strip().lower() in TRUTH_WORDS:
        raise MalformedRow(
            f'"{make_one_line(column)}" is the text {text!r}, which a template takes for true: '
            "write it as a truth value, or give the recipe's chat_template_kwargs one"
        )
    return text


def _find_kind(value: Any) -> str | None:
    """What `value` is to a person; None for a text, a null, and what the recipe cannot hold."""
    return next((name for types, name in KINDS if isinstance(value, types)), None)


def _parse_cell(column: str, text: str, kind: str) -> Any:
    """The cell as JSON, where spreadsheets and Python write True and FALSE as well."""
    word = text.strip().lower()
    try:
        return parse_json(word if word in TRUTH_WORDS else text)
    except ValueError as error:
        raise _malformed(column, text, kind) from error


def _malformed(column: str, value: Any, kind: str) -> MalformedRow:
    shown = make_one_line(repr(value))
    return MalformedRow(
        f'"{make_one_line(column)}" is {shown}, not {kind} as in the recipe\'s chat_template_kwargs'
    )
