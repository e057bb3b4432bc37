"""Measure how the CPU time of a block divides into stages, by the source files that run.

A timer interrupts the process every few milliseconds of CPU time. The time since the last interrupt
is added to the stage of the innermost function whose file belongs to a stage. During a long call
into C the interrupt waits, and then the whole call is added. The last interval ends with the block.
So the stages add up to the whole time, and the block runs at normal speed. A stage that is shorter
than the system's clock tick (up to 10 ms) may be missed.
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
    """A context manager that measures its block: `with StageClock(stage_of_file) as clock: ...`.

    Args:
        stage_of_file: The stage of each file name, for example {"rendering.py": "render"}.

    Attributes:
        cpu_seconds: After the block, the CPU seconds of each stage.
    """

    def __init__(self, stage_of_file: Mapping[str, str]) -> None:
        self._stage_of_file = stage_of_file
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> StageClock:
        self._before = signal.signal(signal.SIGPROF, self._add_interval)
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
        self._add_interval(signal.SIGPROF, sys._getframe(1))

    @property
    def shares(self) -> dict[str, float]:
        """The share of each stage in the CPU time. Stages that took no time are missing."""
        total = sum(self.cpu_seconds.values()) or 1.0
        return {stage: seconds / total for stage, seconds in self.cpu_seconds.items()}

    def _add_interval(self, _: int, frame: FrameType | None) -> None:
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
