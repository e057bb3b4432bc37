"""Measure a part of this process: CPU, wall and peak memory of one block, for the workers.

Imports and the loading of a tokenizer cost more than the work that is compared, so they stay
outside the block. The peak is of the block alone where the kernel lets a process reset its
high-water mark (Linux, proc(5) clear_refs); elsewhere there is none. What imports and earlier
blocks left in memory is in it all the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class OwnCost:
    """`with OwnCost() as cost: ...`, then `cost.values`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def __enter__(self) -> OwnCost:
        self._has_peak = _reset_peak()
        self._cpu_seconds, self._wall_seconds = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.values["cpu_seconds"] = time.process_time() - self._cpu_seconds
        self.values["wall_seconds"] = time.perf_counter() - self._wall_seconds
        if self._has_peak:
            self.values["peak_rss_bytes"] = _read_peak_bytes()


def _reset_peak() -> bool:
    """Set the peak back to what is resident now; whether that could be done."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _read_peak_bytes() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) * 1024
