"""Remove local paths and secrets in URLs from a recipe before it is published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.shown_text import CHAIN_SEPARATOR, hide_secrets

_LOCAL_PATH = re.compile(r"~|/|(file|local):/", re.IGNORECASE)


def name_base(model_name_or_path: str) -> str:
    """Return the public name of a base model: its hub id, or the last part of its local path."""
    path = Path(model_name_or_path)
    return path.name if path.is_absolute() or path.exists() else model_name_or_path


def make_public(value: Any) -> Any:
    """Return a copy of `value`, a part of a recipe as plain data, that can be published.

    A local path is cut to its last part. A URL loses its user, password, query and fragment,
    because they may hold secrets.
    """
    if isinstance(value, Mapping):
        return {name: make_public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_public(item) for item in value]
    if not isinstance(value, str):
        return value
    return "::".join(map(_make_part_public, CHAIN_SEPARATOR.split(value)))


def _make_part_public(text: str) -> str:
    return Path(text).name if _LOCAL_PATH.match(text) else hide_secrets(text)
