"""What a person wrote and where: plain values that each remember their file and line.

Reading, composing and overriding all work on this tree, so that the place of every value is
still known when something turns out to be wrong with it. Nothing here judges a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """The place that set a value, and the folder that its relative paths start from."""

    file: str
    line: int | None
    folder: Path

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Written:
    """One value of a recipe: a scalar, a list of `Written`, or a mapping to `Written`."""

    value: Any
    origin: Origin

    def plain(self) -> Any:
        """The value without its places: what `json.loads` would have given."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def places(self, prefix: str = "") -> Iterator[tuple[str, Origin]]:
        """Every dotted path below this value with its origin; list items count from 0."""
        for name, child in self._children():
            dotted = join(prefix, name)
            yield dotted, child.origin
            yield from child.places(dotted)

    def _children(self) -> Iterator[tuple[str, Written]]:
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from ((str(index), child) for index, child in enumerate(self.value))


def join(prefix: str, name: str | int) -> str:
    """`data` and `max_length` give `data.max_length`."""
    return f"{prefix}.{name}" if prefix else str(name)


def wrap(value: Any, origin: Origin) -> Written:
    """Plain data as a tree whose every value comes from `origin`."""
    if isinstance(value, dict):
        return Written({key: wrap(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, list):
        return Written([wrap(child, origin) for child in value], origin)
    return Written(value, origin)
