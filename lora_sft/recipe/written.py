"""A recipe as it was written: plain values that each remember their file and line.

Reading, composing and overriding all work on this tree. So a later error can name the place of any
value. Nothing in this file checks a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """The place that set a value.

    Attributes:
        file: The file's name in messages, or "command line".
        line: The line, counted from 1, or None for the command line.
        folder: The folder from which relative paths in the value start.
    """

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
        """Return the value without its origins, as `json.loads` would return it."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def places(self, prefix: str = "") -> Iterator[tuple[str, Origin]]:
        """Yield every dotted path below this value with its origin. List items count from 0."""
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
    """Return a dotted path: `data` and `max_length` give `data.max_length`."""
    return f"{prefix}.{name}" if prefix else str(name)


def wrap(value: Any, origin: Origin) -> Written:
    """Return plain data as a tree in which every value has the same origin."""
    if isinstance(value, dict):
        return Written({key: wrap(child, origin) for key, child in value.items()}, origin)
    if isinstance(value, list):
        return Written([wrap(child, origin) for child in value], origin)
    return Written(value, origin)
