"""Measure the tokens, the time and the memory of a training run, without the trainer's own log.

Each trainer defines its own speed: some count padding, others sequences or epochs. These meters
read the inputs of the model's embedding, and the clock at the ends of steps. So all contestants are
measured in the same way.
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
    """Wait until the GPU has finished its work. Do nothing on a machine without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TokenMeter:
    """A hook on the model's embedding that keeps the token ids of every micro-batch."""

    def __init__(self, model: Any) -> None:
        self.batches: list[torch.Tensor] = []
        embedding = model.get_input_embeddings()
        self._handle = embedding.register_forward_pre_hook(self._keep)

    def _keep(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.batches.append(inputs[0].detach())

    def remove(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def count_tokens(self, start: int, end: int) -> int:
        """Return the number of non-padding tokens in the micro-batches [start, end)."""
        return sum(int((ids != PAD_ID).sum()) for ids in self.batches[start:end])

    def count_slots(self, start: int, end: int) -> int:
        """Return the number of tokens in the micro-batches [start, end), padding included."""
        return sum(ids.numel() for ids in self.batches[start:end])

    def find_documents(self, documents: Documents, start: int, end: int) -> list[int]:
        """Return the numbers of the documents in the micro-batches [start, end), in order."""
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
    """An observer that times the steps after the warm-up.

    It waits for the GPU only before and after the timed steps.

    Attributes:
        count_batches: Returns how many micro-batches the model has received so far.
        marks: That count after step 1 ("first step"), after the warm-up ("warm") and after the last
            step ("end"). With it the tokens of exactly the timed steps can be counted.
    """

    warmup_steps: int
    steps: int
    count_batches: Callable[[], int]
    marks: dict[str, int] = field(default_factory=dict)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    _start: tuple[float, float] = (0.0, 0.0)

    def start_step(self, step: int) -> None:
        """Do nothing. An observer must have this method."""

    def end_step(self, step: int) -> None:
        """Set a mark after step 1, after the warm-up and after the last step."""
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
    """Reset torch's peak of GPU memory. On a CPU do nothing: the peak is that of the process."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def read_peak_memory() -> dict[str, int]:
    """Return peaks of memory in bytes.

    On a GPU: the peaks that torch allocated and reserved, and the bytes of the device that are in
    use now. On a CPU: the peak resident memory of this process.
    """
    if not torch.cuda.is_available():
        return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "driver_bytes": total - free,
    }
