"""Measure the CPU time, the wall time and the peak memory of one `with` block in this process.

Imports and the loading of a tokenizer cost more than the compared work, so the workers keep them
outside the block. The peak of the block is known only if the kernel lets a process reset its own
peak (Linux, proc(5) clear_refs). It includes the memory that imports and earlier blocks still hold.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class BlockCost:
    """A context manager that measures its block: `with BlockCost() as cost: ...`.

    Attributes:
        values: After the block: `cpu_seconds`, `wall_seconds` and, if it is known,
            `peak_rss_bytes`.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def __enter__(self) -> BlockCost:
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
    """Reset the peak to the memory that is resident now. Return whether the kernel allowed it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _read_peak_bytes() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) * 1024
