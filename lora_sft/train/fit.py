"""Train: the last stage before export, and the only one that costs hours.

Everything that decides the numbers is made before (rows, batch plan, model); here they are put
together and watched, and a checkpoint is left whenever the run must stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from lora_sft.errors import EXIT_DONE
from lora_sft.log import say
from lora_sft.model.base_model import CausalModel
from lora_sft.processes.stop_signal import StopRequest, exit_code_of
from lora_sft.processes.watch import Watch
from lora_sft.recipe import Recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train.callbacks import (
    BestCheckpoint,
    MetricsFile,
    ProgressDisplay,
    ProgressForWatch,
    StopOnSignal,
)
from lora_sft.train.checkpoints.resume import find_best_checkpoint, read_checkpoint_state
from lora_sft.train.first_step import FirstStepRecord
from lora_sft.train.packing import Packing
from lora_sft.train.trl.trainer import build_trainer


@dataclass(frozen=True)
class TrainResult:
    """How training ended: the step, the exit code it stands for, and why it stopped.

    `state_saved`: the work up to `step` is on disk, as an adapter or as a checkpoint.
    """

    step: int
    exit_code: int = EXIT_DONE
    reason: str = ""
    state_saved: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether the run reached its end (by steps, epochs or early stopping)."""
        return self.exit_code == EXIT_DONE


def fit(
    recipe: Recipe,
    arguments: Any,
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: tuple[Packing, Dataset | None],
    run: RunDirectory,
    origin: Mapping[str, Any],
    request: StopRequest,
    watch: Watch | None = None,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Train `model`'s adapter on `rows` (train, validation), from `checkpoint` if one is given.

    `origin` says what base the adapter belongs to; it is saved with every checkpoint. `watch` is
    told of each step.

    Raises: NonFiniteLoss before the step that would have used a loss or gradient that is none;
    TrainingError where a saved adapter is not what was trained.
    """
    stop = StopOnSignal(request)
    callbacks: list[TrainerCallback] = [MetricsFile(run), ProgressDisplay()]
    if watch is not None:
        callbacks.append(ProgressForWatch(watch))
    patience = recipe.train.get("early_stopping_patience")
    if patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=patience))
    callbacks.append(stop)  # the last: it looks at what the others ask of the trainer
    trainer = build_trainer(arguments, model, tokenizer, *rows, callbacks)
    trainer.origin, trainer.stop = origin, stop
    trainer.first_step = FirstStepRecord(run)
    trainer.add_callback(trainer.first_step)
    if checkpoint is not None:
        best = find_best_checkpoint(run, checkpoint)
        if _has_nothing_left(checkpoint, trainer):
            say(f"{checkpoint.name} is the last step already; nothing is left to train")
            is_best_wanted = best is not None and trainer.args.load_best_model_at_end
            trainer._load_from_checkpoint(str(best if is_best_wanted else checkpoint))
            return TrainResult(read_checkpoint_state(checkpoint)["global_step"])
        trainer.add_callback(BestCheckpoint(best))
    with request.stepping():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _make_result(trainer, stop)


def _has_nothing_left(checkpoint: Path, trainer: Any) -> bool:
    """Whether a run was killed between its last checkpoint and its end.

    The stock trainer would train one step more than asked for (transformers 5.23 tests for the
    end only after a step).
    """
    arguments = trainer.args
    steps = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1]
    return bool(read_checkpoint_state(checkpoint)["global_step"] >= steps)


def _make_result(trainer: Any, stop: StopOnSignal) -> TrainResult:
    state = trainer.state
    if stop.received is None or state.global_step >= state.max_steps:
        return TrainResult(state.global_step)
    reason = f"stopped by {stop.received.name}, state saved"
    return TrainResult(state.global_step, exit_code_of(stop.received), reason, state_saved=True)
