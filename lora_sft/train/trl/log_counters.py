"""Keep the sums behind the log records in each checkpoint.

A log record has the mean loss since the last record, and the tokens since step 0. The Trainer and
TRL keep these sums in memory only (transformers 5.23, trl 1.16). Without them a continued run would
count its tokens from 0 again, and its first loss would be a mean over fewer steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from trl import SFTTrainer


class LogCounters(TrainerCallback, ExportableState):
    """A callback whose state, in `trainer_state.json`, is what the trainer has summed for the log.

    Attributes:
        saved: The sums of the last checkpoint; empty before the first.
    """

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer
        self.saved: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return the sums in the form in which the Trainer stores the state of a callback."""
        return {"args": {}, "attributes": {"saved": self.saved}}

    def note(self) -> None:
        """Note the sums for the next checkpoint; every process must call this.

        The loss since the last record is the only sum that differs between processes.
        """
        trainer = self.trainer
        losses = trainer.accelerator.gather(trainer._tr_loss.reshape(1))
        self.saved = {
            "unlogged_loss_by_process": losses.tolist(),
            "logged_loss": trainer._total_loss_scalar,
            "last_logged_step": trainer._globalstep_last_logged,
            "tokens": trainer._total_train_tokens,
            "unlogged_metrics": dict(trainer._metrics["train"]),
        }

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Give the trainer the sums of its checkpoint.

        Another number of processes shares the loss equally: a log record has the mean over all.
        """
        if not self.saved:  # a start at step 0, or a checkpoint of an older version
            return
        trainer, saved = self.trainer, self.saved
        losses = torch.tensor(saved["unlogged_loss_by_process"], device=trainer.args.device)
        is_same_world = len(losses) == trainer.args.world_size
        trainer._tr_loss = losses[trainer.args.process_index] if is_same_world else losses.mean()
        trainer._total_loss_scalar = saved["logged_loss"]
        trainer._globalstep_last_logged = saved["last_logged_step"]
        trainer._total_train_tokens = saved["tokens"]
        trainer._metrics["train"].update(saved["unlogged_metrics"])
