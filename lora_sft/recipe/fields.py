"""Describe the values that a setting accepts, and check a value against this description.

The same record describes our own settings (made from annotations) and the settings of the libraries
(read from a snapshot). So both give the same messages. This file does not use a validation library:
importing one takes more time than reading a recipe.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

REQUIRED: Any = object()
MAX_LISTED_CHOICES = 12

_JSON_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    tuple: "array",
    dict: "object",
    type(None): "null",
}
_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_EXAMPLES: dict[str, Any] = {
    "boolean": True,
    "integer": 1,
    "number": 1.0,
    "string": "text",
    "array": [],
    "object": {},
}
_YAML_1_1_BOOLEANS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}


class Section:
    """The base class of every dataclass that is a section of the recipe."""


@dataclass(frozen=True, slots=True)
class Field:
    """The description of one setting.

    Attributes:
        types: Names of the JSON types that the setting accepts.
        choices: If not empty, the only texts that the setting accepts.
        items: JSON type of the items of a list or mapping; empty if all types are accepted.
        default: The default value, or `REQUIRED`.
        example: A valid value to show in error messages.
        above: A number must be greater than this.
        at_least: A number must be greater than or equal to this.
        below: A number must be smaller than this.
        python_class: A Python class that the library accepts here, but a recipe cannot contain.
        section: The section that a mapping, or each item of a list, must be.
        path_kind: If the value is a path, the kind of thing it leads to (see `locations`).
        located_as: The attribute of the section that holds the resolved path.
        help: The description for users.
    """

    types: tuple[str, ...]
    choices: tuple[str, ...] = ()
    items: str = ""
    default: Any = None
    example: Any = None
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    python_class: str = ""
    section: type[Section] | None = None
    path_kind: str = ""
    located_as: str = ""
    help: str = ""

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    def widened(self, *types: str, choices: tuple[str, ...] = ()) -> Field:
        """Return the same field that also accepts these types and choices."""
        merged = tuple(dict.fromkeys((*self.types, *types)))
        return replace(self, types=merged, choices=(*self.choices, *choices))


def make_field(annotation: Any, **details: Any) -> Field:
    """Return the field for a type annotation.

    `details` sets the attributes that an annotation cannot express.
    """
    field = Field(())
    for part in _flatten(annotation):
        field = _with_alternative(field, part)
    return replace(field, **details)


def _with_alternative(field: Field, part: Any) -> Field:
    """Return `field` that also accepts one more alternative of a union."""
    origin = get_origin(part) or part
    if isinstance(part, bool):
        return field.widened("boolean")
    if isinstance(part, str):
        return field.widened("string", choices=(part,))
    if origin is Any:
        return field.widened(*_WORDS)
    if hasattr(part, "__members__"):
        return field.widened("string", choices=tuple(str(member.value) for member in part))
    if origin in (list, dict):
        return _with_items(field, _JSON_TYPES[origin], get_args(part))
    if origin in _JSON_TYPES:
        return field.widened(_JSON_TYPES[origin])
    if issubclass(origin, Section):
        return replace(field.widened("object"), section=origin)
    return replace(field, python_class=origin.__name__)


def _with_items(field: Field, json_type: str, arguments: tuple[Any, ...]) -> Field:
    """Return `field` that also accepts a list or a mapping.

    If a field accepts both, their items are not checked: `Field.items` has room for only one type.
    """
    item = arguments[-1] if arguments else Any
    has_other_items = bool({"array", "object"} & set(field.types))
    field = field.widened(json_type)
    if isinstance(item, type) and issubclass(item, Section):
        return replace(field, section=item)
    return replace(field, items="" if has_other_items else _JSON_TYPES.get(item, ""))


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a union and the values of a Literal."""
    if annotation is None:
        yield type(None)
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _flatten(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def check_value(value: Any, field: Field) -> str | None:
    """Return the end of an error sentence that begins with the setting's name, or None if valid."""
    json_type = find_json_type(value)
    if json_type not in field.types and not (json_type == "integer" and "number" in field.types):
        return _wrong_type(value, field)
    if isinstance(value, str) and field.choices and not _is_choice(value, field.choices):
        return f"must be {_list_words(field)}, not {_show(value)}"
    if isinstance(value, (list, dict)) and field.items:
        return _check_items(value, field)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _check_number(value, field)
    return None


def suggest_value(value: Any, field: Field) -> Any:
    """Return the nearest valid value.

    This is the given value unquoted or converted, or else an example, the default or a choice.
    """
    for candidate in _list_candidates(value, field):
        if candidate is not None and check_value(candidate, field) is None:
            return candidate
    return None


def find_json_type(value: Any) -> str:
    """Return the JSON name of a plain value's type."""
    return _JSON_TYPES[type(value)]


def make_placeholder(field: Field) -> Any:
    """Return some value of the right type, so that the checks of other settings can go on."""
    return _EXAMPLES[field.types[0]] if field.is_required else field.default


def _list_candidates(value: Any, field: Field) -> Iterator[Any]:
    if isinstance(value, str):
        yield _YAML_1_1_BOOLEANS.get(value.lower())
        yield from _numbers_in(value)
        yield _nearest(value, field.choices)
    elif isinstance(value, float) and value.is_integer():
        yield int(value)
    if not isinstance(value, (list, dict)):
        yield [value]
    yield from (field.example, None if field.is_required else field.default)
    yield from field.choices
    yield from (_EXAMPLES[name] for name in field.types if name in _EXAMPLES)


def _numbers_in(text: str) -> Iterator[int | float]:
    for read in (int, float):
        try:
            yield read(text.replace("_", ""))
        except ValueError:
            continue


def _nearest(word: str, words: tuple[str, ...]) -> str | None:
    from difflib import get_close_matches  # imported late: only errors need it

    return next(iter(get_close_matches(word, words, n=1, cutoff=0.5)), None)


def _wrong_type(value: Any, field: Field) -> str:
    if field.python_class and field.types == ("null",):
        return f"needs a Python object ({field.python_class}), which a recipe cannot contain"
    return f"must be {_list_words(field)}, not {_show(value)}"


def _check_items(values: list[Any] | dict[str, Any], field: Field) -> str | None:
    one = Field((field.items,))
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in items:
        if check_value(value, one):
            return f"must contain only {_WORDS[field.items]}, but item {name} is {_show(value)}"
    return None


def _check_number(value: float, field: Field) -> str | None:
    if not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if field.above is not None and value <= field.above:
        return f"must be above {field.above:g}, not {value:g}"
    if field.at_least is not None and value < field.at_least:
        return f"must be at least {field.at_least:g}, not {value:g}"
    if field.below is not None and value >= field.below:
        return f"must be below {field.below:g}, not {value:g}"
    return None


def _is_choice(value: str, choices: tuple[str, ...]) -> bool:
    return value in choices or any(_fits_pattern(value, choice) for choice in choices)


def _fits_pattern(value: str, choice: str) -> bool:
    """Return whether a value fits a choice that PEFT writes as a pattern.

    PEFT has one such choice: `pissa_niter_[number of iters]`.
    """
    prefix, bracket, _ = choice.partition("[")
    return bool(bracket) and value.startswith(prefix) and value[len(prefix) :].isdigit()


def _list_words(field: Field) -> str:
    if len(field.choices) > MAX_LISTED_CHOICES:
        return f"one of {len(field.choices)} words (see `lora-sft show --schema`)"
    words = [_WORDS[name] for name in field.types if name != "string" or not field.choices]
    words = [*field.choices, *words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f'the text "{value}"'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return _WORDS[find_json_type(value)] if isinstance(value, (list, dict)) else repr(value)
