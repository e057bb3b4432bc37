"""Compile the prompts of a recipe: Jinja texts over the columns of a row, in a sandbox."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


@lru_cache
def compile_prompt(text: str) -> jinja2.Template:
    """Return the compiled prompt. A name without a value is an error when it is rendered.

    Raises: jinja2.TemplateSyntaxError if the text is not a valid template.
    """
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["tojson"] = _write_json
    return environment.from_string(text)


def _write_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as chat templates write it. Jinja's own filter escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
