"""The interface of a lane: a list of small tasks, each run in a separate process.

Tasks are small because a GPU host may be available for only a few minutes. Finished tasks are on
disk, and a later visit runs the others. The processes are separate, so that memory peaks, patched
libraries and crashes of one contestant do not affect the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.record import Case, Record, Role


@dataclass(frozen=True)
class Scale:
    """The sizes of all tasks: full sizes for a GPU, or toy sizes that a CPU runs in seconds."""

    name: str
    steps: int
    warmup_steps: int
    tokens_per_step: int
    repeats: int

    @property
    def is_toy(self) -> bool:
        return self.name == "toy"


# Steps 6 to 25 are timed. The first five warm up allocators, autotuners and caches.
FULL = Scale("full", steps=25, warmup_steps=5, tokens_per_step=16_384, repeats=3)
TOY = Scale("toy", steps=3, warmup_steps=1, tokens_per_step=192, repeats=1)
SCALES = {scale.name: scale for scale in (FULL, TOY)}


@dataclass(frozen=True)
class Task:
    """The work of one process: it measures one sample of a case.

    Attributes:
        seconds: The time limit.
        tree: The set of packed wheels that the process uses.
        options: Settings of the contestant, or of the lane.
    """

    subject: str
    contestant: str
    role: Role
    repeat: int = 0
    seconds: float = 150.0
    needs_cuda: bool = False
    tree: str = "wheels"
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, to be sent as JSON to the task's process."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """The record and the folders that a task works with.

    Attributes:
        record: The cases measured so far. The task only reads it.
        models: The folder of random models, shared by all tasks.
        work_folder: A folder for this task only, removed after it.
    """

    record: Record
    models: Path
    work_folder: Path
    scale: Scale


class Lane(Protocol):
    """A module of this package with these two functions.

    A lane with gates also has a function `judge(record)`, which applies them.
    """

    def list_tasks(self, scale: Scale) -> Iterator[Task]:
        """Yield the tasks, the most important first."""

    def perform(self, task: Task, place: Place) -> Case:
        """Run one task in this process and return its case."""
