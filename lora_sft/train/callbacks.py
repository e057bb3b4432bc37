"""Trainer callbacks: the metrics file, the progress display, stop signals, the best checkpoint."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import SaveStrategy

from lora_sft.log import make_console, say
from lora_sft.processes.stop_signal import StopRequest
from lora_sft.processes.watch import Watch
from lora_sft.run_directory import RunDirectory, write_text_atomically

SHOWN_METRICS = (
    "loss",
    "train_loss",
    "eval_loss",
    "grad_norm",
    "learning_rate",
    "mean_token_accuracy",
)
LAST_RECORD_FIELD = "train_loss"  # only the last record of a start has it


class MetricsFile(TrainerCallback):
    """A callback that appends every log record to `metrics.jsonl`, with the Trainer's own keys.

    The file must be that of a run in one start. So a resumed run first writes the records up to its
    checkpoint, which the checkpoint stores too. Later records are made again. A file that was
    damaged or deleted is then whole again.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.metrics

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the records up to the step of the checkpoint."""
        if state.is_world_process_zero:
            lines = [_make_line(record["step"], record) for record in state.log_history]
            write_text_atomically(self.path, "".join(lines))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one record; the file is closed each time, so that a killed run keeps it."""
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_make_line(state.global_step, logs))


def _make_line(step: float, record: Mapping[str, Any]) -> str:
    """Return a record as a line of JSON: the step, the shown metrics, then the other names sorted.

    A checkpoint sorts the names of its records, so their order must not depend on the Trainer's.

    NaN and infinity become null, because JSON cannot express them. Under float16 a gradient norm
    may be infinite.
    """
    others = sorted(record.keys() - {"step", *SHOWN_METRICS})
    names = [name for name in (*SHOWN_METRICS, *others) if name in record]
    return json.dumps({"step": step, **{n: _replace_non_finite(record[n]) for n in names}}) + "\n"


def _replace_non_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ProgressDisplay(TrainerCallback):
    """A callback that shows a progress bar in a terminal; otherwise one line per log record."""

    def __init__(self) -> None:
        self.console = make_console()
        self.bar: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the first step of this start."""
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bar.add_task("", total=state.max_steps, completed=state.global_step, metrics="")
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the main metrics of the record."""
        shown = format_metrics(logs or {})
        if not shown:
            return
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], metrics=shown)
        else:
            say(f"step {state.global_step}/{state.max_steps}  {shown}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar; it stays visible."""
        if self.bar is not None:
            self.bar.stop()


def format_metrics(record: dict[str, Any]) -> str:
    """Return the main metrics of a log record as one line."""
    return "  ".join(f"{name} {record[name]:.4g}" for name in SHOWN_METRICS if name in record)


class StopOnSignal(TrainerCallback):
    """A callback that stops the trainer after a signal, with a checkpoint at the end of the step.

    The state is saved only between two steps, because the random state must be the one that the
    next step starts with. A checkpoint from inside a step would give other dropout masks.

    If an evaluation belongs to this step, it is skipped unless it decides something: the best
    checkpoint, early stopping, or a learning rate that follows the loss. A scheduler gives only a
    few minutes after a signal. But without a deciding evaluation, the continued run would give
    another result. A running evaluation is not interrupted: all ranks would have to stop it at the
    same batch.
    """

    def __init__(self, request: StopRequest | None = None) -> None:
        self.request = request or StopRequest()
        self.received: signal.Signals | None = None  # on any rank
        self._has_stepped = False
        self._saved_step = -1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the trainer save and stop, on every rank at the same step."""
        self._has_stepped = True
        self._stop_if_signalled(args, control)
        if self._stops_early(state) and args.metric_for_best_model is None:
            self._skip_evaluation(state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after an evaluation during which a signal arrived, without another step.

        There are three exceptions:

        - Before the first step the trainer would stop inside a step.
        - With `save_strategy: best` the trainer resets `should_save` after this call.
        - If early stopping has just ended the run, it is complete and was not stopped by a signal.
        """
        may_stop = self._has_stepped and not control.should_training_stop
        if may_stop and args.save_strategy != SaveStrategy.BEST:
            self._stop_if_signalled(args, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the last saved step."""
        self._saved_step = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the state of a stopped run if it is not saved yet, and skip needless evaluations.

        The trainer calls this after each stop, also in the middle of an epoch. There no evaluation
        is necessary. With `save_strategy: best` an evaluation may have cancelled the save.
        """
        if not self._stops_early(state):
            return
        is_epoch_end = state.epoch is not None and float(state.epoch).is_integer()
        if not is_epoch_end:
            control.should_evaluate = control.should_log = False
        elif args.metric_for_best_model is None:
            self._skip_evaluation(state, control)
        is_saved = self._saved_step == state.global_step
        control.should_save = control.should_evaluate or control.should_log or not is_saved

    def _stop_if_signalled(self, args: TrainingArguments, control: TrainerControl) -> None:
        self.received = self._find_signal_of_any_rank(args)
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def _stops_early(self, state: TrainerState) -> bool:
        """Return whether a signal stops the run before its last step."""
        return self.received is not None and state.global_step < state.max_steps

    def _skip_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        if control.should_evaluate:
            control.should_evaluate = False
            say(f"the evaluation of step {state.global_step} is skipped")

    def _find_signal_of_any_rank(self, args: TrainingArguments) -> signal.Signals | None:
        """Return the signal that any rank received, or None; equal on every rank.

        If only one rank stopped, the others would wait for it. Of several signals, the one with the
        highest number decides the exit code of all ranks.
        """
        here = self.request.received
        if args.world_size == 1:
            return here
        number = torch.tensor(int(here or 0), device=args.device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return signal.Signals(int(number.item())) if number.item() else None


class SaveAfterEpoch(TrainerCallback):
    """A callback that saves the last step of an epoch after the epoch's evaluation and log record.

    The trainer makes them after it has saved the step. The checkpoint would not know them, and a
    run that continues from it would not repeat them. It must be the last callback.
    """

    def __init__(self) -> None:
        self._is_due = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Postpone a save at the last step of an epoch or of the run."""
        is_last = control.should_training_stop or float(state.epoch).is_integer()
        self._is_due = is_last and control.should_save
        control.should_save = control.should_save and not is_last

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the save that was postponed. The trainer evaluates and logs before it saves."""
        control.should_save = control.should_save or self._is_due


class StopAtLastStep(TrainerCallback):
    """A callback that trains no step if the checkpoint is already the last step of the run.

    That happens if a run was killed between its last checkpoint and its end. The Trainer would
    train one step too many, and after early stopping it would train on (transformers 5.23).
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the training before its first step."""
        if state.global_step >= state.max_steps or was_stopped_early(state):
            say(f"step {state.global_step} is the last step; there is nothing left to train")
            control.should_training_stop = True


def was_stopped_early(state: TrainerState) -> bool:
    """Return whether early stopping had ended the run before its checkpoint was saved."""
    stored = read_callback_state(state, EarlyStoppingCallback)
    if not stored:
        return False
    evaluations_without_gain = stored["attributes"]["early_stopping_patience_counter"]
    return bool(evaluations_without_gain >= stored["args"]["early_stopping_patience"])


def read_callback_state(state: TrainerState, kind: type) -> dict[str, Any]:
    """Return what the trainer's state has stored for a kind of callback; empty if nothing."""
    stored: Any = state.stateful_callbacks  # in fact a dict, by class name
    return stored.get(kind.__name__) or {}


class BestCheckpoint(TrainerCallback):
    """A callback that gives the trainer the present path of the best checkpoint of a moved run.

    The trainer warns that the recorded path does not exist and is ignored. The warning would be
    wrong here, so it is hidden (transformers 5.23 `Trainer._init_training_state`).
    """

    def __init__(self, best: Path | None) -> None:
        self.best = best
        logging.getLogger("transformers.trainer").addFilter(_is_not_missing_best_warning)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set `state.best_model_checkpoint` to the place where that checkpoint is now.

        If the best checkpoint is lost, its score is removed too. Otherwise a later checkpoint with
        a lower score could never become the best.
        """
        state.best_model_checkpoint = str(self.best) if self.best is not None else None
        if self.best is None:
            state.best_metric = None


def _is_not_missing_best_warning(record: logging.LogRecord) -> bool:
    return "recorded in the resumed state does not exist anymore" not in record.getMessage()


class ProgressForWatch(TrainerCallback):
    """A callback that reports progress to the watch, which ends a stalled run."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Expect steps from now on."""
        self.watch.expect_steps(True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop expecting steps: saving and merging may take any time."""
        self.watch.expect_steps(False)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a micro-batch."""
        self.watch.step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step."""
        self.watch.step()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a batch of an evaluation."""
        self.watch.step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a checkpoint."""
        self.watch.step()
