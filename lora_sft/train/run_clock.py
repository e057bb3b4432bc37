"""Measure how long training and evaluations take, with a clock that never jumps.

The Trainer measures with the time of day (transformers 5.23 `speed_metrics`). If that clock is set
back or forward during a run, it logs negative or absurd durations and rates.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from transformers import TrainerCallback

RUNTIME = "_runtime"
RATE = "_per_second"
# The Trainer's clock starts a moment before or after this one. A larger difference is a jump.
TOLERATED_SECONDS = 1.0
TOLERATED_SHARE = 0.05


class RunClock(TrainerCallback):
    """A callback that notes when training begins; `start` notes when an evaluation begins."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin to measure the training."""
        self.start("train")

    def start(self, split: str) -> None:
        """Begin to measure."""
        self._started[split] = time.monotonic()

    def find_start_time(self, split: str) -> float | None:
        """Return when the measurement began, as the time of day by the present clock."""
        seconds = self._measure(split)
        return None if seconds is None else time.time() - seconds

    def correct(self, logs: MutableMapping[str, Any]) -> None:
        """Replace a duration that is wrong because the time of day jumped.

        The rates that were computed from it are left out: rounded, they tell nothing any more.
        """
        for name in [name for name in logs if name.endswith(RUNTIME)]:
            split, logged = name.removesuffix(RUNTIME), logs[name]
            seconds = self._measure(split)
            if seconds is None or _is_close(logged, seconds):
                continue
            logs[name] = round(seconds, 4)
            for rate in [key for key in logs if key.startswith(split) and key.endswith(RATE)]:
                del logs[rate]

    def _measure(self, split: str) -> float | None:
        started = self._started.get(split)
        return None if started is None else max(time.monotonic() - started, 1e-4)


def _is_close(logged: float, seconds: float) -> bool:
    return abs(logged - seconds) <= TOLERATED_SECONDS + TOLERATED_SHARE * seconds
