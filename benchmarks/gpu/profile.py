"""Profile one training step: its kernels by time, the launches, and the device's busy share.

The profiled step comes after the warm-up. The busy share is the time in which at least one kernel
runs, divided by the step's wall time. In the rest of the time the device waits for the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import CONTESTANTS, LORA_SFT, TRL_DEFAULT, TRL_TUNED
from benchmarks.gpu.lane import Place, Scale, Task
from benchmarks.gpu.throughput import (
    FIRST,
    TOY_SUBJECTS,
    Subject,
    make_job,
    make_subject_documents,
)
from benchmarks.meters import synchronize
from benchmarks.record import Case, Measurement
from benchmarks.shapes import SHAPES, build_random_model

MEASURE = "profile"

KERNELS_KEPT = 40
NAME_CHARACTERS = 160


def list_tasks(scale: Scale) -> Iterator[Task]:
    """Yield one task per contestant for the two main models with LoRA."""
    subjects = TOY_SUBJECTS[:1] if scale.is_toy else FIRST
    for subject in subjects:
        for each in (LORA_SFT,) if scale.is_toy else (LORA_SFT, TRL_TUNED, TRL_DEFAULT):
            yield Task(subject.name, each.name, each.role, seconds=150)


def perform(task: Task, place: Place) -> Case:
    """Train up to the profiled step and return the profiler's results."""
    subject = Subject.parse(task.subject)
    shape = SHAPES[subject.shape]
    build_random_model(shape, place.models / shape.name)
    documents = make_subject_documents(subject, place.scale)
    scale = place.scale
    job = make_job(subject, documents, place, {})
    job = type(job)(**{**job.__dict__, "steps": scale.warmup_steps + 1})
    observer = ProfiledStep(scale.warmup_steps + 1)
    CONTESTANTS[task.contestant].build(job).train([observer])
    table = observer.make_table()
    measured = {
        "kernel_launches": Measurement("launches", (float(table["launches"]),)),
        "busy_share": Measurement("share", (table["busy_share"],), "higher"),
        "step_wall_seconds": Measurement("s", (table["wall_seconds"],)),
    }
    return Case(task.subject, task.contestant, task.role, measured, facts=table)


@dataclass
class ProfiledStep:
    """An observer that profiles one optimizer step."""

    step: int
    _profile: Any = None
    _spans: list[tuple[str, float, float]] = field(default_factory=list)

    def start_step(self, step: int) -> None:
        """Start the profiler if this is the wanted step."""
        if step == self.step:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            synchronize()
            self._profile = profile(activities=activities)
            self._profile.start()

    def end_step(self, step: int) -> None:
        """Stop the profiler after the wanted step, when the GPU has finished its work."""
        if step == self.step:
            synchronize()
            self._profile.stop()

    def make_table(self) -> dict[str, Any]:
        """Return the wall time, the busy share, the launches and the slowest kernels.

        On a CPU, operators are counted in place of kernels.
        """
        on_gpu = torch.cuda.is_available()
        events = self._profile.events()
        wanted = "CUDA" if on_gpu else "CPU"
        spans = [
            (event.name, event.time_range.start, event.time_range.end)
            for event in events
            if event.device_type.name == wanted and (on_gpu or event.cpu_parent is None)
        ]
        start = min(event.time_range.start for event in events)
        end = max(event.time_range.end for event in events)
        return {
            "wall_seconds": (end - start) / 1e6,
            "busy_share": measure_union([span[1:] for span in spans]) / (end - start),
            "launches": len(spans),
            "kernels": _sum_by_name(spans),
        }


def measure_union(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, so that overlapping kernels count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _sum_by_name(spans: Iterable[tuple[str, float, float]]) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = defaultdict(list)
    for name, start, end in spans:
        times[name[:NAME_CHARACTERS]].append(end - start)
    ranked = sorted(times.items(), key=lambda each: -sum(each[1]))[:KERNELS_KEPT]
    return [
        {"name": name, "calls": len(each), "microseconds": round(sum(each), 1)}
        for name, each in ranked
    ]
