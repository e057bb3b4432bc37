"""Measure a training run from outside: what went into the model, when, and what it held.

A trainer's own speed log counts what it means to count (padding, sequences, epochs). These meters
hang on the embedding and on step ends, so that every contestant is measured alike.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.documents import Documents
from benchmarks.shapes import PAD_ID


def synchronize() -> None:
    """Wait for the GPU, where there is one: its work is asynchronous."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TokenMeter:
    """Keeps every batch of token ids that the model's embedding is given."""

    def __init__(self, model: Any) -> None:
        self.batches: list[torch.Tensor] = []
        embedding = model.get_input_embeddings()
        self._handle = embedding.register_forward_pre_hook(self._keep)

    def _keep(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.batches.append(inputs[0].detach())

    def remove(self) -> None:
        """Stop listening."""
        self._handle.remove()

    def count_tokens(self, start: int, end: int) -> int:
        """Non-padding tokens of the micro-batches [start, end)."""
        return sum(int((ids != PAD_ID).sum()) for ids in self.batches[start:end])

    def count_slots(self, start: int, end: int) -> int:
        """Token slots of the micro-batches [start, end), padding included."""
        return sum(ids.numel() for ids in self.batches[start:end])

    def find_documents(self, documents: Documents, start: int, end: int) -> list[int]:
        """The numbers of the documents in the micro-batches [start, end), in order."""
        found = []
        first, base = documents.first_digit_id, documents.base
        for batch in self.batches[start:end]:
            ids = batch.reshape(-1).cpu()
            places = ((ids >= first) & (ids < first + base)).nonzero().flatten()
            numbers = (ids[places] - first) * base + ids[places + 1] - first - base
            found += numbers.tolist()
        return found


@dataclass
class StepClock:
    """Times the steps after `warmup_steps`; a synchronisation at both ends and nowhere between.

    `count_batches` tells how many micro-batches the model has seen, so that tokens and seconds
    belong to the same steps.
    """

    warmup_steps: int
    steps: int
    count_batches: Callable[[], int]
    marks: dict[str, int] = field(default_factory=dict)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    _start: tuple[float, float] = (0.0, 0.0)

    def start_step(self, step: int) -> None:
        """Part of the observer's interface; steps count from 1."""

    def end_step(self, step: int) -> None:
        """Mark the ends of step 1, of the warm-up and of the last step."""
        if step == 1:
            self.marks["first step"] = self.count_batches()
        if step == self.warmup_steps:
            synchronize()
            self.marks["warm"] = self.count_batches()
            self._start = (time.perf_counter(), time.process_time())
        if step == self.steps:
            synchronize()
            self.wall_seconds = time.perf_counter() - self._start[0]
            self.cpu_seconds = time.process_time() - self._start[1]
            self.marks["end"] = self.count_batches()


def reset_peak_memory() -> None:
    """Start a new peak (GPU only; a process's resident peak cannot be reset)."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_peak_memory() -> dict[str, int]:
    """Peaks in bytes: allocated and reserved by torch, and what the driver holds in all now.

    On a CPU the process's resident peak stands for all of them.
    """
    if not torch.cuda.is_available():
        return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "driver_bytes": total - free,
    }
