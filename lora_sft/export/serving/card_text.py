"""Write text from outside the program into a model card, so that it stays text.

A model hub shows a card as a page. The names and settings in it come from recipes and from the
cards of base models, which may hold markup, control characters or keys of metadata.
"""

from __future__ import annotations

import html
import json
import re

from lora_sft.shown_text import escape_unprintable

_PLAIN_SCALAR = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
_MARKUP = re.compile(r"[\\`*\[\]|]")


def write_yaml_text(text: str) -> str:
    """Return a text as a YAML scalar. Markup is escaped too, because not every page escapes it."""
    if _PLAIN_SCALAR.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    quoted = escape_unprintable(json.dumps(text, ensure_ascii=False))
    return quoted.replace("<", r"\u003c").replace(">", r"\u003e")


def write_markdown_text(text: str) -> str:
    """Return a text as Markdown that shows the same characters."""
    escaped = html.escape(escape_unprintable(text), quote=False)
    return _MARKUP.sub(r"\\\g<0>", escaped)


def write_markdown_code(text: str) -> str:
    """Return a text as Markdown code, for a cell of a table."""
    text = escape_unprintable(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    space = " " if longest else ""
    fence = "`" * (longest + 1)
    return f"{fence}{space}{text}{space}{fence}"
