"""What watches a training run: the metrics file, the progress a person sees, the stop signal."""

from __future__ import annotations

import json
import logging
import math
import signal
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from lora_sft.log import make_console, say
from lora_sft.processes.stop_signal import StopRequest
from lora_sft.processes.watch import Watch
from lora_sft.run_directory import RunDirectory, write_text_atomically

SHOWN_METRICS = ("loss", "eval_loss", "grad_norm", "learning_rate", "mean_token_accuracy")


class MetricsFile(TrainerCallback):
    """Append every logged record to `metrics.jsonl`, with the Trainer's own keys and the step.

    A resumed run first drops the records past its checkpoint: those steps are made again, and
    each may stand in the file only once.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.metrics

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the records up to the step that the run goes on from."""
        if not state.is_world_process_zero:
            return
        kept = [
            line
            for line in (self.path.read_text().splitlines() if self.path.exists() else [])
            if _read_step(line) <= state.global_step
        ]
        write_text_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one record and push it to disk, so that a killed run keeps it.

        What is no finite number (a norm under float16) is null: JSON has no word for it.
        """
        if state.is_world_process_zero and logs:
            record = {name: None if _is_no_number(value) else value for name, value in logs.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **record}) + "\n")


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _read_step(line: str) -> float:
    """The step of a record; past every step for a line that a killed run left half written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class ProgressDisplay(TrainerCallback):
    """A bar with the loss in a terminal; one plain line a log record anywhere else."""

    def __init__(self) -> None:
        self.console = make_console()
        self.bar: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the step the run goes on from."""
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
        """Show the record's main numbers."""
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
        """Leave the bar as it is and give the terminal back."""
        if self.bar is not None:
            self.bar.stop()


def format_metrics(record: dict[str, Any]) -> str:
    """The main numbers of a log record on one line."""
    return "  ".join(f"{name} {record[name]:.4g}" for name in SHOWN_METRICS if name in record)


class StopOnSignal(TrainerCallback):
    """Turn a signal into a saved checkpoint at the next step boundary.

    Only there is the saved random state the one that the next step starts from; a checkpoint
    written inside a step resumes on other dropout draws.

    An evaluation that only informs is left out then, for who sends a signal gives minutes. One that
    decides (the best checkpoint, early stopping, a rate that follows the loss) is made: without it
    the run would go on to another end. Neither is ended halfway, which all ranks would have to do
    at the same batch.
    """

    def __init__(self, request: StopRequest | None = None) -> None:
        self.request = request or StopRequest()
        self.received: signal.Signals | None = None  # by any process
        self._has_stepped = False
        self._saved_step = -1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the trainer to save and stop, on every rank at the same step."""
        self._has_stepped = True
        self._stop_if_asked(args, control)
        if self._leaves_early(state) and args.metric_for_best_model is None:
            self._leave_out_evaluation(state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After an evaluation the run is still at the end of a step: no other one is waited for.

        Except before the first step, where the trainer would leave within it, and where the
        evaluation itself decides what is saved: there the trainer takes back what is asked here.
        A run that the evaluation ends (early stopping, which is asked before) is no stopped one.
        """
        is_asked_anew = self._has_stepped and not control.should_training_stop
        if is_asked_anew and args.save_strategy != SaveStrategy.BEST:
            self._stop_if_asked(args, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember which step is on disk."""
        self._saved_step = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trainer comes by here after each stop, also in the middle of an epoch.

        There nothing is due. What a stop has not saved yet is saved here: where only the best is
        kept, an evaluation may have taken the save back.
        """
        if not self._leaves_early(state):
            return
        is_whole = state.epoch is not None and float(state.epoch).is_integer()
        if not is_whole:
            control.should_evaluate = False
        elif args.metric_for_best_model is None:
            self._leave_out_evaluation(state, control)
        is_saved = self._saved_step == state.global_step
        control.should_save = control.should_evaluate or not is_saved

    def _stop_if_asked(self, args: TrainingArguments, control: TrainerControl) -> None:
        self.received = self._agree(args)
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def _leaves_early(self, state: TrainerState) -> bool:
        """Whether the run stops before its last step; after it, it is complete."""
        return self.received is not None and state.global_step < state.max_steps

    def _leave_out_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        if control.should_evaluate:
            control.should_evaluate = False
            say(f"the evaluation of step {state.global_step} is left out")

    def _agree(self, args: TrainingArguments) -> signal.Signals | None:
        """The signal that any rank received; one that stopped alone would leave the rest hanging.

        Of several, the one with the highest number: it decides the exit code of all of them.
        """
        here = self.request.received
        if args.world_size == 1:
            return here
        number = torch.tensor(int(here or 0), device=args.device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return signal.Signals(int(number.item())) if number.item() else None


class BestCheckpoint(TrainerCallback):
    """Tell the trainer where the best checkpoint lies now, in place of where it lay when saved.

    What the trainer says of the older place, that it is ignored, is then not so, and left out
    (transformers 5.23 `Trainer._init_training_state`).
    """

    def __init__(self, best: Path | None) -> None:
        self.best = best
        logging.getLogger("transformers.trainer").addFilter(_is_not_about_the_older_place)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The counters were just read from the checkpoint that is gone on from.

        Without the checkpoint its score counts no more: nothing later could be kept for being best.
        """
        state.best_model_checkpoint = str(self.best) if self.best is not None else None
        if self.best is None:
            state.best_metric = None


def _is_not_about_the_older_place(record: logging.LogRecord) -> bool:
    return "recorded in the resumed state does not exist anymore" not in record.getMessage()


class ProgressForWatch(TrainerCallback):
    """Tell the watch over the processes that something was done."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on steps are to be expected."""
        self.watch.expect_steps(True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What follows takes as long as it takes."""
        self.watch.expect_steps(False)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A micro-batch is done."""
        self.watch.step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step is done."""
        self.watch.step()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A batch of an evaluation is done."""
        self.watch.step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint is written."""
        self.watch.step()
