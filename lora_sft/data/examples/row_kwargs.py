"""Read the template arguments that a source row sets, in separate columns or in one object.

A CSV file holds only strings, and a template treats the string "false" as true. So a value is read
as the type that the same argument has in the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.rows.plain_json import check_is_json_value, parse_json
from lora_sft.shown_text import make_one_line

BOOLEAN_WORDS = ("true", "false")
# The types of values in a recipe, in words. bool is first, because Python counts it as int.
KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (list, "a list"),
    (Mapping, "an object"),
)


def read_row_kwargs(
    values: Mapping[str, Any], own: Mapping[str, Any], recipe_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the template arguments that a row sets.

    A column with the name of a recipe argument sets this argument. A null or an empty cell sets
    nothing. In the row's own object, a null is a value: JSON holds it only if the author wrote it.

    Args:
        values: The values of the row by column.
        own: The object of template arguments in the row. It overrides the columns.
        recipe_kwargs: The template arguments of the recipe.

    Raises: MalformedRow, with the column, if a value has another type than in the recipe.
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
    """Return the value as the type of `example`. Tables may hold true and false as 1 and 0."""
    kind = _find_kind(example)
    if value is None:
        return None
    if isinstance(value, str):
        value = _read_text(column, value, example)
    if isinstance(example, bool) and isinstance(value, int | float) and value in (0, 1):
        value = bool(value)
    if kind is not None and _find_kind(value) != kind:
        raise _make_type_error(column, value, kind)
    check_is_json_value(value, column)
    return value


def _read_text(column: str, text: str, example: Any) -> Any:
    """Return the value of a string as the type of `example`.

    Raises: MalformedRow if the string has no such value.
    """
    kind = _find_kind(example)
    if kind is not None:
        return _parse_cell(column, text, kind)
    if example is None and text.strip().lower() in BOOLEAN_WORDS:
        raise MalformedRow(
            f'"{make_one_line(column)}" is the string {text!r}, which a template treats as true: '
            "write it without quotes, or set it in the recipe's chat_template_kwargs"
        )
    return text


def _find_kind(value: Any) -> str | None:
    """Return the type of `value` in words; None for a string, a null, and any other type."""
    return next((name for types, name in KINDS if isinstance(value, types)), None)


def _parse_cell(column: str, text: str, kind: str) -> Any:
    """Return the cell as JSON. Accept TRUE and True too: spreadsheets and Python write them."""
    word = text.strip().lower()
    try:
        return parse_json(word if word in BOOLEAN_WORDS else text)
    except ValueError as error:
        raise _make_type_error(column, text, kind) from error


def _make_type_error(column: str, value: Any, kind: str) -> MalformedRow:
    shown = make_one_line(repr(value))
    return MalformedRow(
        f'"{make_one_line(column)}" is {shown}, but must be {kind}, '
        "as in the recipe's chat_template_kwargs"
    )
