"""Report to experiment trackers (TensorBoard, Weights & Biases, ...) without depending on them.

A tracker is a companion of a training. If its server is down or its folder is gone, the training
goes on: `metrics.jsonl` has every record. The first failure of a tracker is shown, and later
failures are counted. After a failure the tracker rests before the next try, because each try may
wait for a time limit of the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from lora_sft.log import say

FIRST_REST_SECONDS = 1.0  # doubled after each further failure
LONGEST_REST_SECONDS = 300.0
EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))


def make_trackers(names: Sequence[str], metrics: Path) -> list[TrainerCallback]:
    """Return the library's callback of each tracker; its calls cannot end the training.

    Args:
        names: The trackers, as in `train.report_to`.
        metrics: The file that has every record.

    Raises: ImportError or RuntimeError if the package of a tracker is not installed.
    """
    kinds = get_reporting_integration_callbacks(list(names))
    made = (_make_tracker(name, kind, metrics) for name, kind in zip(names, kinds, strict=True))
    return [tracker for tracker in made if tracker is not None]


def _make_tracker(name: str, kind: type[TrainerCallback], metrics: Path) -> TrainerCallback | None:
    calls = TrackerCalls(name, metrics)
    try:
        tracker = kind()
    except Exception as error:  # each tracker raises errors of its own
        if isinstance(error, ImportError) or "install" in str(error):
            raise
        calls.note_failure("its start", error)
        return None
    for event in EVENTS:
        if getattr(kind, event) is not getattr(TrainerCallback, event):
            setattr(tracker, event, partial(calls.make, event, getattr(tracker, event)))
    return tracker


class TrackerCalls:
    """The calls of one tracker: it counts those that failed or were left out.

    Attributes:
        name: The tracker.
        metrics: The file that has every record.
        num_lost: The number of calls that failed or were left out.
    """

    def __init__(self, name: str, metrics: Path) -> None:
        self.name = name
        self.metrics = metrics
        self.num_lost = 0
        self._failures_in_a_row = 0
        self._next_try = 0.0

    def make(self, event: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the tracker, and return its result; None if the call failed or was left out."""
        is_end = event == "on_train_end"
        result = None
        if is_end or time.monotonic() >= self._next_try:
            try:
                result = call(*args, **kwargs)
                self._failures_in_a_row = 0
            except Exception as error:  # each tracker raises errors of its own
                self.note_failure(event, error)
        else:
            self.num_lost += 1
        if is_end and self.num_lost:
            say(f"warning: the tracker {self.name} lost {self.num_lost} calls; see {self.metrics}")
        return result

    def note_failure(self, event: str, error: Exception) -> None:
        """Count a failure, show the first one, and choose when the tracker is tried again."""
        if not self.num_lost:
            say(
                f"warning: the tracker {self.name} failed in {event} ({type(error).__name__}: "
                f"{error}); the training goes on, and {self.metrics} has every record"
            )
        self.num_lost += 1
        rest = min(FIRST_REST_SECONDS * 2**self._failures_in_a_row, LONGEST_REST_SECONDS)
        self._failures_in_a_row += 1
        self._next_try = time.monotonic() + rest
