"""Remove from a recipe what must not be published: local paths, and secrets in addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ADDRESS = re.compile(r"(?<![\w+.-])([\w+.-]*://)(\S*)")


_LINK = re.compile(r"::(?=~|/|[\w+.-]+:/)")  # of a chain, as fsspec writes it (and no IPv6 host)


_LOCAL = re.compile(r"~|/|(file|local):/", re.IGNORECASE)


def name_base(model_name_or_path: str) -> str:
    """A base's public name: the hub id, or only the folder's name for a local one."""
    path = Path(model_name_or_path)
    return path.name if path.is_absolute() or path.exists() else model_name_or_path


def make_public(value: Any) -> Any:
    """A part of a recipe (as plain data) in which every local path is cut to its last name.

    Addresses lose what may let a stranger in: user and password, and all that a signed one ends in.
    """
    if isinstance(value, Mapping):
        return {name: make_public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_public(item) for item in value]
    if not isinstance(value, str):
        return value
    return "::".join(map(_make_link_public, _LINK.split(value)))


def _make_link_public(text: str) -> str:
    return Path(text).name if _LOCAL.match(text) else _ADDRESS.sub(_strip_address, text)


def _strip_address(address: re.Match[str]) -> str:
    scheme, rest = address.groups()
    kept = re.split("[?;&#]", rest, maxsplit=1)[0]
    if scheme.lower() == "hf://":  # no user: what follows an @ is the revision
        return scheme + kept
    if "@" in rest[len(kept) :]:  # a password with such a sign, or a query with an @
        return scheme
    return scheme + kept.rpartition("@")[2]
