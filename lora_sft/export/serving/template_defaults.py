"""Write the recipe's arguments for the chat template into the exported template, as defaults.

A server renders the exported template without arguments. A model that was trained with
`enable_thinking: false` would then get another prompt than in training. So the exported template
begins with one line per argument:

    {%- set enable_thinking = false if enable_thinking is not defined else enable_thinking %}

If a request passes a value, that value is used. A template that calls `strftime_now` shows the date
of each request, as its authors wanted. But if the recipe sets `data.template_date`, the exported
template always shows that date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

from lora_sft.data.templates.rendering import DATE_FUNCTION, FIXED_DATE_MACRO
from lora_sft.errors import ExportError

HEADER = "{#- Defaults from training, written by lora-sft; what a request passes wins. -#}"
CLOCK_CALL = re.compile(rf"\b{DATE_FUNCTION}\s*\(")
CLOCK_FORMAT = re.compile(rf"\b{DATE_FUNCTION}\s*\(\s*(?:\"([^\"\\]*)\"|'([^'\\]*)')\s*\)")
# `apply_chat_template` always passes these arguments, so a default would never be used.
ALWAYS_PASSED = frozenset(("messages", "tools", "documents", "add_generation_prompt"))


def set_template_defaults(
    template: str, template_kwargs: Mapping[str, Any] | None, day: str | None = None
) -> str:
    """Return a template that renders without arguments as `template` does with them.

    A template that has defaults already is returned unchanged.

    Args:
        day: The date (YYYY-MM-DD) that the template always shows; None: the date of each request.

    Raises: ExportError if a value is not possible in Jinja, or if the date cannot be fixed.
    """
    if template.startswith(HEADER):
        return template
    lines = [
        f"{{%- set {name} = {_to_jinja(value, name)} if {name} is not defined else {name} %}}"
        for name, value in (template_kwargs or {}).items()
        if name.isidentifier() and name not in ALWAYS_PASSED  # a template reads only identifiers
    ]
    if day is not None and CLOCK_CALL.search(template):
        lines.append(_make_fixed_clock(template, date.fromisoformat(day)))
    return "\n".join([HEADER, *lines, template]) if lines else template


def _make_fixed_clock(template: str, day: date) -> str:
    """Return a macro that replaces the clock. It knows every date format of the template.

    Raises: ExportError if the template computes a format.
    """
    formats = {double or single for double, single in CLOCK_FORMAT.findall(template)}
    if len(CLOCK_FORMAT.findall(template)) != len(CLOCK_CALL.findall(template)):
        raise ExportError(
            f"the chat template calls {DATE_FUNCTION} with an argument that is not a plain text",
            "data.template_date",
            "set data.template_date: null; a server then shows the date of each request",
        )
    known = {format_: day.strftime(format_) for format_ in sorted(formats)}
    return f"{FIXED_DATE_MACRO}{{{{ {_to_jinja(known, DATE_FUNCTION)}[format] }}}}{{%- endmacro %}}"


def _to_jinja(value: Any, name: str) -> str:
    """Return a value of a recipe as a Jinja literal.

    Raises: ExportError if Jinja has no literal for its type.
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(_escape(value))}"'
    if isinstance(value, list):
        return f"[{_join(_to_jinja(item, name) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (
            f"{_to_jinja(str(key), name)}: {_to_jinja(item, name)}" for key, item in value.items()
        )
        return f"{{{_join(pairs)}}}"
    raise ExportError(
        f"a default of the chat template cannot be a {type(value).__name__}",
        f"data.chat_template_kwargs.{name}",
        "write a text, a number, true, false, null, or a list or mapping of them",
    )


def _join(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def _escape(text: str) -> Iterator[str]:
    """Yield the characters of a Jinja literal.

    Source: Jinja reads Python's escapes (jinja2 3.1 `lexer.wrap`).
    """
    for character in text:
        if character in '"\\':
            yield f"\\{character}"
        elif character in "{}%#" or not character.isprintable():
            yield f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
        else:
            yield character
