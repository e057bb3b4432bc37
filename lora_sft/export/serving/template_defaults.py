"""What the recipe told the chat template, written into the template as defaults.

A server is started by somebody who does not know the recipe: it renders the exported template
with no arguments, and a model trained with `enable_thinking: false` would be shown another prompt
than it learned from. So the values stand at the head of the exported template, each as

    {%- set enable_thinking = false if enable_thinking is not defined else enable_thinking %}

A value that a request brings still wins. The clock is another matter: a template that calls
`strftime_now` goes on telling the day of the request, as its authors meant it to, unless the
recipe itself named the day (`data.template_date`); then that day stands in the export as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any

from lora_sft.data.templates.rendering import DATE_FUNCTION, FIXED_DATE_MACRO
from lora_sft.errors import ExportError

MARK = "{#- Defaults from training, written by lora-sft; what a request passes wins. -#}"
CLOCK_CALL = re.compile(rf"\b{DATE_FUNCTION}\s*\(")
CLOCK_FORMAT = re.compile(rf"\b{DATE_FUNCTION}\s*\(\s*(?:\"([^\"\\]*)\"|'([^'\\]*)')\s*\)")
# `apply_chat_template` passes these itself, so a default for them would never be used.
PASSED_ALWAYS = frozenset(("messages", "tools", "documents", "add_generation_prompt"))


def set_template_defaults(
    template: str, template_kwargs: Mapping[str, Any] | None, day: str | None = None
) -> str:
    """The template that renders without arguments as this one does with them.

    `day` (YYYY-MM-DD) stops the clock of a template that reads it. A template that has its
    defaults already is returned as it is.

    Raises: ExportError for a value that Jinja cannot spell, or a clock that cannot be stopped.
    """
    if template.startswith(MARK):
        return template
    lines = [
        f"{{%- set {name} = {_spell(value, name)} if {name} is not defined else {name} %}}"
        for name, value in (template_kwargs or {}).items()
        if name.isidentifier() and name not in PASSED_ALWAYS  # no template can read another name
    ]
    if day is not None and CLOCK_CALL.search(template):
        lines.append(_stop_clock(template, date.fromisoformat(day)))
    return "\n".join([MARK, *lines, template]) if lines else template


def _stop_clock(template: str, day: date) -> str:
    """A macro of the clock's name that knows the formats this template asks for."""
    formats = {double or single for double, single in CLOCK_FORMAT.findall(template)}
    if len(CLOCK_FORMAT.findall(template)) != len(CLOCK_CALL.findall(template)):
        raise ExportError(
            f"the chat template calls {DATE_FUNCTION} with something other than a plain text",
            "data.template_date",
            "set template_date: null, and the served template tells the day of the request",
        )
    known = {format_: day.strftime(format_) for format_ in sorted(formats)}
    return f"{FIXED_DATE_MACRO}{{{{ {_spell(known, DATE_FUNCTION)}[format] }}}}{{%- endmacro %}}"


def _spell(value: Any, name: str) -> str:
    """A value of a recipe as a Jinja literal.

    Raises: ExportError for a type that has none.
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(_escape(value))}"'
    if isinstance(value, list):
        return f"[{_join(_spell(item, name) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_spell(str(key), name)}: {_spell(item, name)}" for key, item in value.items())
        return f"{{{_join(pairs)}}}"
    raise ExportError(
        f"the chat template cannot be given a {type(value).__name__} as a default",
        f"data.chat_template_kwargs.{name}",
        "write a text, a number, true, false, null, or a list or mapping of them",
    )


def _join(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def _escape(text: str) -> Iterator[str]:
    """Jinja reads a text literal as Python does, escapes included (jinja2 3.1 `lexer.wrap`)."""
    for character in text:
        if character in '"\\':
            yield f"\\{character}"
        elif character in "{}%#" or not character.isprintable():
            yield f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
        else:
            yield character
