"""Train an adapter: build the trainer, run it, and report how training ended.

The job already has every decision: rows, batch plan and model. If a signal arrives, training stops
at the end of a step with a checkpoint.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from lora_sft.errors import EXIT_DONE, TrainingError
from lora_sft.log import say
from lora_sft.processes.stop_signal import StopRequest, exit_code_of
from lora_sft.processes.watch import Watch
from lora_sft.train.callbacks import (
    BestCheckpoint,
    MetricsFile,
    ProgressDisplay,
    ProgressForWatch,
    StopOnSignal,
)
from lora_sft.train.checkpoints.resume import find_best_checkpoint, read_checkpoint_state
from lora_sft.train.training_job import TrainingJob
from lora_sft.train.trl.trainer import LoraTrainer, build_trainer


@dataclass(frozen=True)
class TrainResult:
    """How training ended.

    Attributes:
        step: The last optimizer step.
        exit_code: The exit code of the command.
        reason: Why the run stopped; empty if it is complete.
        state_saved: Whether the work up to `step` is on disk, as an adapter or as a checkpoint.
    """

    step: int
    exit_code: int = EXIT_DONE
    reason: str = ""
    state_saved: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its end (by steps, epochs or early stopping)."""
        return self.exit_code == EXIT_DONE


def fit(job: TrainingJob, request: StopRequest, watch: Watch | None = None) -> TrainResult:
    """Train the job's adapter, from its checkpoint if it has one.

    Args:
        job: The training job.
        request: Notes the signals that ask the run to stop.
        watch: Counts each step, so that a stalled run ends; None in a run of one process.

    Raises:
        NonFiniteLoss: If a loss or a gradient is not finite; raised before the optimizer step.
        TrainingError: If a saved adapter differs from the one in memory, or if the checkpoint holds
            code.
    """
    with _refusing_code(job.checkpoint):
        return _fit(job, request, watch)


def _fit(job: TrainingJob, request: StopRequest, watch: Watch | None) -> TrainResult:
    stop = StopOnSignal(request)
    trainer = build_trainer(job, [*make_callbacks(job, watch), stop], stop)
    if job.checkpoint is not None:
        best = find_best_checkpoint(job.run, job.checkpoint, trust_checkpoint=job.trust_checkpoint)
        if has_no_steps_left(trainer):
            say(f"{job.checkpoint.name} is the last step; there is nothing left to train")
            is_best_wanted = best is not None and job.arguments.load_best_model_at_end
            trainer._load_from_checkpoint(str(best if is_best_wanted else job.checkpoint))
            return TrainResult(read_checkpoint_state(job.checkpoint)["global_step"])
        trainer.add_callback(BestCheckpoint(best))
    with request.stepping():
        trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    return make_result(trainer.state, stop)


@contextmanager
def _refusing_code(checkpoint: Path | None) -> Iterator[None]:
    """Turn torch's refusal of a pickle that holds more than tensors and numbers into our error.

    The Trainer and PEFT unpickle with `weights_only=True`, so no code of the pickle has run.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise TrainingError(
            "a state file of the checkpoint holds more than tensors and numbers, and is not loaded",
            str(checkpoint),
            "continue from another checkpoint, and do not trust the author of this one",
        ) from error


def make_callbacks(job: TrainingJob, watch: Watch | None) -> list[TrainerCallback]:
    """Return the callbacks of a run, except `StopOnSignal`.

    That one must be the last: it changes what the others have asked the trainer to do.
    """
    callbacks: list[TrainerCallback] = [MetricsFile(job.run), ProgressDisplay()]
    if watch is not None:
        callbacks.append(ProgressForWatch(watch))
    patience = job.recipe.train.get("early_stopping_patience")
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=patience))
    return callbacks


def has_no_steps_left(trainer: LoraTrainer) -> bool:
    """Return whether the job's checkpoint is the last step of the run.

    That happens if a run was killed between its last checkpoint and its end. The Trainer would then
    train one step too many (transformers 5.23 compares with `max_steps` only after a step).
    """
    job = trainer.job
    assert job.checkpoint is not None
    batches = trainer.get_train_dataloader()
    steps = trainer.set_initial_training_values(job.arguments, batches)[-1]
    return bool(read_checkpoint_state(job.checkpoint)["global_step"] >= steps)


def make_result(state: Any, stop: StopOnSignal) -> TrainResult:
    """Return how training ended, from the trainer's state and the received signal."""
    if stop.received is None or state.global_step >= state.max_steps:
        return TrainResult(state.global_step)
    reason = f"stopped by {stop.received.name}, state saved"
    return TrainResult(state.global_step, exit_code_of(stop.received), reason, state_saved=True)
