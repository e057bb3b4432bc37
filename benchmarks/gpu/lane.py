"""What a lane is: a list of small tasks, each done in a process of its own.

Small, because a GPU host is lent for minutes: what is done is on disk, what is not is done next
time. A process of its own, because peaks of memory, patched libraries and crashes must not leak
from one contestant into the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.record import Case, Record, Role


@dataclass(frozen=True)
class Scale:
    """The sizes of a visit: real ones, or toy ones that a CPU does in seconds."""

    name: str
    steps: int
    warmup_steps: int
    tokens_per_step: int
    repeats: int

    @property
    def is_toy(self) -> bool:
        return self.name == "toy"


# Steps 6 to 25 are timed: allocators, autotuners and caches have settled by then.
FULL = Scale("full", steps=25, warmup_steps=5, tokens_per_step=16_384, repeats=3)
TOY = Scale("toy", steps=3, warmup_steps=1, tokens_per_step=192, repeats=1)
SCALES = {scale.name: scale for scale in (FULL, TOY)}


@dataclass(frozen=True)
class Task:
    """One process's work: a sample of one case. `seconds` is what it may take at most."""

    subject: str
    contestant: str
    role: Role
    repeat: int = 0
    seconds: float = 150.0
    needs_cuda: bool = False
    tree: str = "wheels"
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON for the process that does it."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where a task works: the record so far (to read only), the models of all tasks, and a
    folder of its own that is gone afterwards."""

    record: Record
    models: Path
    work_folder: Path
    scale: Scale


class Lane(Protocol):
    """A module of this package with these two functions, and `judge(record)` if it has gates."""

    def list_tasks(self, scale: Scale) -> Iterator[Task]:
        """The tasks, the most wanted first."""

    def perform(self, task: Task, place: Place) -> Case:
        """Do one task in this process."""
