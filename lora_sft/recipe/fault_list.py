"""Collects every fault of a recipe, so that a person mends the file once.

A path with a fault is *tainted*: nothing more is said about it, or about a rule that reads it,
because a second message about the same mistake only hides the first.
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
    """The faults found so far and the paths that they make unfit for further checks."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._missing: list[tuple[str, Origin, str]] = []
        self._tainted: set[str] = set()

    def add(self, what: str, origin: Origin, dotted: str = "", fix: str = "") -> None:
        """Record one fault at `origin`, and taint its path."""
        where = f"{origin}  {dotted}" if dotted else str(origin)
        self.add_at(Fault(what, where, fix), origin)
        if dotted:
            self.taint(dotted)

    def add_at(self, fault: Fault, origin: Origin) -> None:
        """Record a fault whose `where` is already written; `origin` only decides the order."""
        self._entries.append(_Entry(fault, origin))

    def add_missing(self, dotted: str, origin: Origin, fix: str) -> None:
        """Record a required setting that was not found. `origin` is the section it belongs to.

        It becomes a fault in `settle_missing`: a misnamed key elsewhere may turn out to be it.
        """
        self._missing.append((dotted, origin, fix))

    def settle_missing(self) -> None:
        """Turn what is still missing into faults, once all sections have been read."""
        for dotted, origin, fix in self._missing:
            if not self.touches_taint(dotted):
                self.add(f"{dotted} is required", origin, dotted, fix)
        self._missing.clear()

    def taint(self, dotted: str) -> None:
        """Say no more about `dotted`."""
        self._tainted.add(dotted)

    def is_tainted(self, dotted: str) -> bool:
        """Whether this path, or a section that holds it, already has a fault."""
        return any(dotted == bad or dotted.startswith(f"{bad}.") for bad in self._tainted)

    def touches_taint(self, dotted: str) -> bool:
        """Whether this path, something above it or something inside it has a fault."""
        inside = any(bad.startswith(f"{dotted}.") for bad in self._tainted)
        return inside or self.is_tainted(dotted)

    def raise_if_any(self) -> None:
        """Raise one RecipeError with every fault, in the order in which the files are read."""
        if self._entries:
            raise RecipeError.from_faults([entry.fault for entry in self._in_reading_order()])

    def _in_reading_order(self) -> list[_Entry]:
        files = list(dict.fromkeys(entry.origin.file for entry in self._entries))
        files.sort(key=lambda file: file == COMMAND_LINE)
        return sorted(
            self._entries,
            key=lambda entry: (files.index(entry.origin.file), entry.origin.line or 0),
        )
