"""A trainer callback for the intervals at which a continued run logs, evaluates and saves."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Intervals(TrainerCallback):
    """A callback that logs, evaluates and saves as the recipe says now.

    A continued run may change `logging_steps`, `eval_steps` and `save_steps`. The Trainer would use
    the values in the checkpoint's state, and warn (transformers 5.23).
    """

    def __init__(self) -> None:
        logging.getLogger("transformers.trainer_utils").addFilter(_is_not_intervals_warning)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the intervals in steps. A value below 1 is a fraction of the run."""
        state.compute_steps(args, state.max_steps)


def _is_not_intervals_warning(record: logging.LogRecord) -> bool:
    return "do not match the ones in the `trainer_state.json`" not in record.getMessage()
