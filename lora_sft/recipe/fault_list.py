"""Collect all faults of a recipe, so that a person can correct them all at once.

Each path is reported at most once. A broken rule about a faulty path is not reported either: a
second message about the same mistake would hide the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.errors import Fault, RecipeError
from lora_sft.recipe.written import COMMAND_LINE, Origin


@dataclass(frozen=True)
class _Entry:
    fault: Fault
    origin: Origin


class FaultList:
    """The faults that were found so far, and the paths that have a fault."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._missing: list[tuple[str, Origin, str]] = []
        self._faulty_paths: set[str] = set()

    def add(self, what: str, origin: Origin, dotted: str = "", fix: str = "") -> None:
        """Record one fault at `origin`, and mark its path as faulty."""
        where = f"{origin}  {dotted}" if dotted else str(origin)
        self.add_at(Fault(what, where, fix), origin)
        if dotted:
            self.mark_faulty(dotted)

    def add_at(self, fault: Fault, origin: Origin) -> None:
        """Record a fault whose `where` is already complete. `origin` only decides the order."""
        self._entries.append(_Entry(fault, origin))

    def add_missing(self, dotted: str, origin: Origin, fix: str) -> None:
        """Record a required setting that is missing from the section at `origin`.

        It becomes a fault only in `settle_missing`: the setting may be present under a wrong name.
        """
        self._missing.append((dotted, origin, fix))

    def settle_missing(self) -> None:
        """Turn the settings that are still missing into faults, after all sections were read."""
        for dotted, origin, fix in self._missing:
            if not self.overlaps_faulty(dotted):
                self.add(f"{dotted} is required", origin, dotted, fix)
        self._missing.clear()

    def mark_faulty(self, dotted: str) -> None:
        """Mark a path as faulty, so that it is not reported again."""
        self._faulty_paths.add(dotted)

    def is_faulty(self, dotted: str) -> bool:
        """Return whether this path, or a section that contains it, already has a fault."""
        return any(dotted == bad or dotted.startswith(f"{bad}.") for bad in self._faulty_paths)

    def overlaps_faulty(self, dotted: str) -> bool:
        """Return whether this path, a path above it or a path inside it has a fault."""
        inside = any(bad.startswith(f"{dotted}.") for bad in self._faulty_paths)
        return inside or self.is_faulty(dotted)

    def raise_if_any(self) -> None:
        """Raise one RecipeError with every fault, sorted by file and line.

        Faults of the command line come last.
        """
        if self._entries:
            raise RecipeError.from_faults([entry.fault for entry in self._in_reading_order()])

    def _in_reading_order(self) -> list[_Entry]:
        files = list(dict.fromkeys(entry.origin.file for entry in self._entries))
        files.sort(key=lambda file: file == COMMAND_LINE)
        return sorted(
            self._entries,
            key=lambda entry: (files.index(entry.origin.file), entry.origin.line or 0),
        )
