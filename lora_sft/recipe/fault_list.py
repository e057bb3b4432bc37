"""Collect all faults of a recipe, so that a person can correct them all at once.

Each path is reported at most once. A broken rule about a faulty path is not reported either: a
second message about the same mistake would hide the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.errors import Fault, RecipeError
from lora_sft.recipe.written import COMMAND_LINE, Origin

MOST_SHOWN = 50


@dataclass(frozen=True)
class _Entry:
    what: str
    where: str
    fix: str
    origin: Origin


class FaultList:
    """The faults that were found so far, and the paths that have a fault."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._missing: list[tuple[str, Origin, str]] = []
        self._faulty_paths: set[str] = set()
        self._above_faulty_paths: set[str] = set()

    @property
    def is_full(self) -> bool:
        """Whether there are as many faults as are shown. No fix is searched for more of them."""
        return len(self._entries) >= MOST_SHOWN

    @property
    def first_origin(self) -> Origin | None:
        """The place of the first fault; None if there is no fault."""
        return self._in_reading_order()[0].origin if self._entries else None

    def add(self, what: str, origin: Origin, dotted: str = "", fix: str = "") -> None:
        """Record one fault at `origin`, and mark its path as faulty."""
        where = f"{origin}  {dotted}" if dotted else str(origin)
        self._entries.append(_Entry(what, where, fix, origin))
        if dotted:
            self.mark_faulty(dotted)

    def add_at(self, fault: Fault, origin: Origin) -> None:
        """Record a fault whose `where` is already complete. `origin` only decides the order."""
        self._entries.append(_Entry(fault.what, fault.where, fault.fix, origin))

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
        self._above_faulty_paths.update(_list_prefixes(dotted)[:-1])

    def is_faulty(self, dotted: str) -> bool:
        """Return whether this path, or a section that contains it, already has a fault."""
        return not self._faulty_paths.isdisjoint(_list_prefixes(dotted))

    def overlaps_faulty(self, dotted: str) -> bool:
        """Return whether this path, a path above it or a path inside it has a fault."""
        return dotted in self._above_faulty_paths or self.is_faulty(dotted)

    def raise_if_any(self) -> None:
        """Raise one RecipeError with the faults, sorted by file and line.

        Faults of the command line come last. The first `MOST_SHOWN` faults are shown, and the
        others are counted.
        """
        if not self._entries:
            return
        entries = self._in_reading_order()
        faults = [Fault(each.what, each.where, each.fix) for each in entries[:MOST_SHOWN]]
        if rest := entries[MOST_SHOWN:]:
            what = f"{len(rest):,} more faults from here on"
            faults.append(Fault(what, rest[0].where, "correct those above first"))
        raise RecipeError.from_faults(faults)

    def _in_reading_order(self) -> list[_Entry]:
        files = list(dict.fromkeys(entry.origin.file for entry in self._entries))
        files.sort(key=lambda file: file == COMMAND_LINE)
        return sorted(
            self._entries,
            key=lambda entry: (files.index(entry.origin.file), entry.origin.line or 0),
        )


def _list_prefixes(dotted: str) -> list[str]:
    """`a.b.c` gives `a`, `a.b` and `a.b.c`."""
    names = dotted.split(".")
    return [".".join(names[:end]) for end in range(1, len(names) + 1)]
