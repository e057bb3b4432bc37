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
from lora_sft.model.computing import computing_errors
from lora_sft.processes.stop_signal import StopRequest, exit_code_of
from lora_sft.processes.watch import Watch
from lora_sft.recipe.optional_packages import explain_import_errors
from lora_sft.train.callbacks import (
    BestCheckpoint,
    MetricsFile,
    ProgressDisplay,
    ProgressForWatch,
    SaveAfterEpoch,
    StopAtLastStep,
    StopOnSignal,
)
from lora_sft.train.checkpoints.resume import find_best_checkpoint
from lora_sft.train.intervals import Intervals
from lora_sft.train.training_job import TrainingJob
from lora_sft.train.trl.trainer import build_trainer


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
        CapabilityError: If a package that the recipe needs cannot be imported.
        NonFiniteLoss: If a loss or a gradient is not finite; raised before the optimizer step.
        TrainingError: If a saved adapter differs from the one in memory, or if the checkpoint holds
            code.
        ModelError: If the model fails when it computes.
    """
    location = job.recipe.model.model_name_or_path
    with (
        _refusing_code(job.checkpoint),
        explain_import_errors(job.recipe),
        computing_errors(location),
    ):
        return _fit(job, request, watch)


def _fit(job: TrainingJob, request: StopRequest, watch: Watch | None) -> TrainResult:
    stop = StopOnSignal(request)
    trainer = build_trainer(job, [*make_callbacks(job, watch), stop, SaveAfterEpoch()])
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
    """Return the callbacks of a run, except `StopOnSignal` and `SaveAfterEpoch`.

    Those must be the last: they change what the others have asked the trainer to do.
    """
    callbacks: list[TrainerCallback] = []
    if job.checkpoint is not None:
        best = find_best_checkpoint(job.run, job.checkpoint, trust_checkpoint=job.trust_checkpoint)
        callbacks += [Intervals(), StopAtLastStep(), BestCheckpoint(best)]
    callbacks += [MetricsFile(job.run), ProgressDisplay()]
    if watch is not None:
        callbacks.append(ProgressForWatch(watch))
    patience = job.recipe.train.get("early_stopping_patience")
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=patience))
    return callbacks


def make_result(state: Any, stop: StopOnSignal) -> TrainResult:
    """Return how training ended, from the trainer's state and the received signal."""
    if stop.received is None or state.global_step >= state.max_steps:
        return TrainResult(state.global_step)
    reason = f"stopped by {stop.received.name}, state saved"
    return TrainResult(state.global_step, exit_code_of(stop.received), reason, state_saved=True)
