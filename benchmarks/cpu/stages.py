"""Where the CPU time of one block goes, by the file whose code it is spent in.

A timer interrupts the process every few milliseconds of CPU time; the time since the last interrupt
is booked on the innermost function whose file is known. A long call into C holds the interrupt
back until it ends and is then booked whole; what is left when the block ends is booked where it
ends. So the stages add up to the whole, and the block runs at its own speed, but a stage shorter
than the system's clock tick (up to 10 ms) may not be seen.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType

INTERVAL_SECONDS = 0.002
OTHER = "other"


class StageClock:
    """`with StageClock({"rendering.py": "render"}) as clock: ...`, then `clock.cpu_seconds`."""

    def __init__(self, stage_of_file: Mapping[str, str]) -> None:
        self._stage_of_file = stage_of_file
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> StageClock:
        self._before = signal.signal(signal.SIGPROF, self._book)
        self._last = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)
        self._book(signal.SIGPROF, sys._getframe(1))

    @property
    def shares(self) -> dict[str, float]:
        """The share of each stage that was seen."""
        total = sum(self.cpu_seconds.values()) or 1.0
        return {stage: seconds / total for stage, seconds in self.cpu_seconds.items()}

    def _book(self, _: int, frame: FrameType | None) -> None:
        now = time.process_time()
        self.cpu_seconds[self._find_stage(frame)] += now - self._last
        self._last = now

    def _find_stage(self, frame: FrameType | None) -> str:
        while frame is not None:
            stage = self._stage_of_file.get(Path(frame.f_code.co_filename).name)
            if stage is not None:
                return stage
            frame = frame.f_back
        return OTHER
