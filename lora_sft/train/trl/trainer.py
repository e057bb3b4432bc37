"""Train with TRL's `SFTTrainer` on rows that are already tokens and labels.

The data stage has already applied templates, made labels, cut and packed rows, so TRL prepares
nothing. The subclass prevents four things: pickled arguments, a model card in a checkpoint, an
adapter in bfloat16, and a step with a loss that is not finite. `RowCollator` makes the batches.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    TrainerCallback,
)
from transformers.trainer_callback import ExportableState
from trl import SFTTrainer

from lora_sft.errors import CapabilityError, LoraSftError, NonFiniteLoss, TrainingError
from lora_sft.file_names import ADAPTER_WEIGHTS_FILE, CARD_FILE, CHECKPOINT_PREFIX, ORIGIN_FILE
from lora_sft.model.adapter import list_adapter_shapes, restore_adapter_dtype
from lora_sft.model.base_model import CausalModel
from lora_sft.model.census import check_trained_dtype
from lora_sft.model.saved_adapter import find_fault_in_saved_adapter
from lora_sft.run_directory import write_json
from lora_sft.train.callbacks import LAST_RECORD_FIELD, read_callback_state
from lora_sft.train.checkpoints.rotation import rotate_checkpoints
from lora_sft.train.checkpoints.sealing import seal
from lora_sft.train.even_shares import FilledSampler, add_filler_rows
from lora_sft.train.first_step import FirstStepRecord
from lora_sft.train.run_clock import RunClock
from lora_sft.train.trackers import make_trackers
from lora_sft.train.training_job import TrainingJob
from lora_sft.train.trl.failed_evaluation import save_and_explain
from lora_sft.train.trl.log_counters import LogCounters
from lora_sft.train.trl.row_collator import make_collator
from lora_sft.written_files import remove_checkpoint


class LoraTrainer(SFTTrainer):
    """An SFTTrainer for tokenised rows that writes only the files of a run directory.

    TRL may cast the adapter weights. They are cast back, so that they train in float32 (PEFT's
    `autocast_adapter_dtype`).
    """

    def __init__(self, job: TrainingJob, callbacks: Sequence[TrainerCallback]) -> None:
        self.job = job
        self.first_step = FirstStepRecord(job.run)
        self._step_losses: list[torch.Tensor] = []  # one per micro-batch since the last step
        self._uncounted_tokens = 0
        arguments, rows = job.arguments, job.rows.dataset
        self.num_rows = len(rows)  # without the filler rows, which follow them
        if arguments.world_size > 1:
            rows_per_round = arguments.world_size * arguments.per_device_train_batch_size
            rows = add_filler_rows(rows, rows_per_round)
        trackers = make_trackers(arguments.report_to, job.run.metrics)
        report_to, arguments.report_to = arguments.report_to, []  # else the Trainer makes its own
        evaluates = arguments.eval_strategy != "no" or arguments.eval_on_start
        arguments.eval_on_start &= job.checkpoint is None  # the first start has done it
        super().__init__(
            model=job.model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=job.validation if evaluates else None,
            processing_class=job.tokenizer,
            callbacks=[*trackers, *callbacks],
        )
        arguments.report_to = report_to
        # Set only now: if TRL is given a collator, it does not set the model's padding token.
        self.data_collator = make_collator(
            job.tokenizer, arguments, keeps_rows_apart=job.rows.keeps_rows_apart
        )
        restore_adapter_dtype(job.model)
        check_trained_dtype(job.model)
        self.adapter_shapes = list_adapter_shapes(job.model)  # of a saved adapter
        self.remove_callback(PrinterCallback)  # it prints to stdout, which is for results only
        self.clock = RunClock()
        self.counters = LogCounters(self)
        for callback in (self.clock, SaveProbe(self), self.first_step, self.counters):
            self.add_callback(callback)

    def _send_telemetry(self) -> None:
        """Send nothing. TRL (1.16) would report the kinds of trainer, model and data to the hub."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save adapter, tokenizer and origin, but not `training_args.bin` as the Trainer does.

        That file is a pickle, which can run code, and it has the hub token in clear text.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        model: CausalModel = self.model
        model.save_pretrained(folder, state_dict=state_dict)
        assert self.processing_class is not None
        self.processing_class.save_pretrained(folder)
        write_json(folder / ORIGIN_FILE, self.job.origin)
        (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT's model card is an empty form

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the Trainer's order of the rows, followed by the filler rows."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.num_rows == len(rows):
            return super()._get_train_sampler(rows)
        order = super()._get_train_sampler(rows.select(range(self.num_rows)))
        data_seed = self.accelerator.dataloader_config.data_seed
        return FilledSampler(order, self.num_rows, len(rows), data_seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, check its adapter, and seal it; then delete the oldest checkpoint."""
        run = self.job.run
        checkpoint = run.checkpoints / f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        if self.args.should_save:  # an existing folder is a damaged or unfinished checkpoint
            remove_checkpoint(checkpoint)
        self.accelerator.wait_for_everyone()
        self._count_all_tokens()
        self.counters.note()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._check_saved_adapter(checkpoint, has_stepped=self.state.global_step >= 2)
            seal(checkpoint, self.args.world_size)
            run.check_not_removed()
            rotate_checkpoints(run, checkpoint, limit, self.state.best_model_checkpoint)

    def _load_callback_state(self) -> None:
        """Give each callback its state in the checkpoint, and keep the order of the callbacks.

        The Trainer would put new callbacks at the end, after `StopOnSignal` (transformers 5.23).
        """
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                stored = read_callback_state(self.state, type(callback))
                vars(callback).update(stored.get("attributes", {}))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train for one epoch, unless no step is left; the Trainer would train one step too many.

        It compares the step with `max_steps` only after a step (transformers 5.23).
        """
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without a change of the random state; if that fails, save the present step.

        Otherwise an evaluation that is added, or that a stop skips, would change the dropout masks
        of all later steps.

        Raises: TrainingError with the reason of the failure. If the connection to another process
        broke, the error of the library.
        """
        self.clock.start("eval")
        self._count_all_tokens()
        gpus = [self.args.device] if self.args.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(gpus):
                return super().evaluate(*args, **kwargs)
        except LoraSftError:
            raise
        except Exception as error:  # of a library, of the device, or of the rows
            explained = save_and_explain(self, error)
            if explained is error:
                raise
            raise explained from error

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """End training, but keep the last checkpoint.

        With `save_total_limit: 1` the Trainer would delete all checkpoints except the best one
        (transformers 5.23). A stopped or longer run must continue from its last checkpoint.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def probe_saving(self) -> None:
        """Save the adapter and check it before the first step, so that a fault shows at once.

        Raises: TrainingError if the saved adapter differs from the one in memory.
        """
        folder = self.job.run.probe
        self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            self._check_saved_adapter(folder, has_stepped=False)
            shutil.rmtree(folder)

    def _check_saved_adapter(self, folder: Path, *, has_stepped: bool) -> None:
        fault = find_fault_in_saved_adapter(
            folder / ADAPTER_WEIGHTS_FILE, self.adapter_shapes, has_stepped=has_stepped
        )
        if fault:
            raise TrainingError(
                f"the saved adapter differs from the trained adapter: {fault}",
                f"{folder} (optimizer step {self.state.global_step})",
                "please report this with the recipe and `pip freeze`; older checkpoints are intact",
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card into a checkpoint; the adapter folder gets a complete one."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradient of one micro-batch; its loss is checked before the step."""
        self.first_step.note_micro_batch(inputs)
        if "position_ids" in inputs:  # without a mask TRL counts only one row (trl 1.16)
            positions = inputs["position_ids"]
            self._uncounted_tokens += positions.numel() - positions.size(1)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._step_losses.append(loss)
        return loss

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss; check it here under DeepSpeed, whose backward also makes the step."""
        result = super().compute_loss(model, *args, **kwargs)
        if self.is_deepspeed_enabled and model.training:
            self._check_finite("loss", result[0] if isinstance(result, tuple) else result)
        return result

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient norm of the step over all processes; check that it is finite.

        The device is read once per step, not once per micro-batch. If the loss is NaN on one rank,
        the norm is NaN on every rank, so all of them stop here. Under float16 the norm may be
        infinite: then the loss scale is too high, and the step is skipped.

        Without DeepSpeed this runs before the optimizer step, under DeepSpeed after it. If the norm
        is not finite, ZeRO skips the step with a warning, and the learning rate schedule stays one
        step ahead (0.19 `engine.step`). Stage 0 computes no norm, so there the weights are checked.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self.is_deepspeed_enabled:
            loss = torch.stack(self._step_losses).sum()
            if not math.isfinite(float(loss if self.args.fp16 else loss + 0.0 * norm)):
                self._check_finite("loss", loss)
                self._check_finite("gradient", norm)
        else:
            self._check_finite("gradient", _find_step_norm(model, norm))
        self._step_losses.clear()
        return norm

    def _check_finite(self, kind: str, value: torch.Tensor | float) -> None:
        """Check that a loss or a norm is finite, before a checkpoint of this step is saved.

        The Trainer would log a loss of 0.0 and save NaN weights.

        Raises: NonFiniteLoss if it is not finite.
        """
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
        if not math.isfinite(number):
            raise NonFiniteLoss(
                f"the {kind} is {number} at optimizer step {self.state.global_step + 1}",
                f"{self.args.output_dir}",
                "set a lower train.learning_rate, or train in bfloat16 or float32; "
                "the last checkpoint is from before this step",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log one record; every process calls this, so the token counts are summed here.

        The last record of a run has the mean loss of all its steps, also of earlier starts.
        """
        model: CausalModel = self.model
        if LAST_RECORD_FIELD in logs:
            model.train()  # it belongs to training, also after an evaluation of the last step
            logs[LAST_RECORD_FIELD] = self._sum_losses() / max(self.state.global_step, 1)
        if model.training:
            self._count_all_tokens()
        self.clock.correct(logs)
        super().log(logs, start_time and self.clock.find_start_time("train"))

    def _sum_losses(self) -> float:
        """Return the sum of the losses of all steps.

        The Trainer has added only this process's own loss since the last record (transformers
        5.23), and not the mean over all processes, as it does for every other record.
        """
        if self.args.world_size == 1:
            return float(self._total_loss_scalar)
        own = self._tr_loss
        mean = self.accelerator.gather(own.reshape(1)).mean()
        return float(self._total_loss_scalar - own.item() + mean.item())

    def _count_all_tokens(self) -> None:
        """Add the tokens that TRL has not counted to its count, over all processes."""
        if getattr(self.data_collator, "keeps_rows_apart", False):
            missed = torch.tensor(self._uncounted_tokens, device=self.args.device)
            self._total_train_tokens += int(self.accelerator.gather(missed).sum().item())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            self._uncounted_tokens = 0


def _find_step_norm(engine: Any, norm: float | None) -> torch.Tensor | float:
    """Return a number that is finite if the gradient of DeepSpeed's last step was finite."""
    if not engine.was_step_applied():
        return math.inf if norm is None else norm
    if norm is not None:
        return norm
    trained = [each.detach() for each in engine.parameters() if each.requires_grad]
    return torch.stack([each.norm() for each in trained]).sum()


def build_trainer(job: TrainingJob, callbacks: Sequence[TrainerCallback]) -> LoraTrainer:
    """Build the trainer of a job.

    Raises: CapabilityError if a library that the recipe asks for is not installed.
    """
    try:
        return LoraTrainer(job, callbacks)
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        raise CapabilityError(
            f"a library that the recipe needs is not installed: {' '.join(str(error).split())}",
            "train",
            "install it, for example with pip install 'lora-sft[track]', or remove the setting",
        ) from error


class SaveProbe(TrainerCallback):
    """A callback that tries to save the adapter before the first step, as it will be trained."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Check the dtype of the adapter, and try to save it."""
        model: CausalModel = self.trainer.model
        check_trained_dtype(model)
        self.trainer.probe_saving()
