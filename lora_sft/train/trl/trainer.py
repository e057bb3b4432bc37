"""The one door to TRL: an `SFTTrainer` over rows that are already tokens and labels.

What TRL would prepare (templates, masks, truncation, packing) the data room has done and
counted; here TRL trains. The subclass only takes away: no pickled arguments, no card in a
checkpoint, no bfloat16 adapters, no step on a loss that is not finite. Packed rows become batches
in `RowCollator`.
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
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from lora_sft.errors import CapabilityError, NonFiniteLoss, TrainingError
from lora_sft.file_names import ADAPTER_WEIGHTS_FILE, CARD_FILE, CHECKPOINT_PREFIX, ORIGIN_FILE
from lora_sft.model.adapter import list_adapter_shapes, restore_adapter_dtype
from lora_sft.model.base_model import CausalModel
from lora_sft.model.census import check_trained_dtype
from lora_sft.model.saved_adapter import find_fault_in_saved_adapter
from lora_sft.run_directory import write_json
from lora_sft.train.callbacks import StopOnSignal
from lora_sft.train.checkpoints.sealing import seal
from lora_sft.train.even_shares import FilledSampler, fill_up
from lora_sft.train.first_step import FirstStepRecord
from lora_sft.train.training_job import TrainingJob
from lora_sft.train.trl.row_collator import make_collator


class LoraTrainer(SFTTrainer):
    """SFTTrainer on rows that are already tokens, which leaves only what a run directory promises.

    Adapter weights train in float32 (PEFT's `autocast_adapter_dtype`), whatever TRL cast them to.
    """

    def __init__(
        self, job: TrainingJob, callbacks: Sequence[TrainerCallback], stop: StopOnSignal
    ) -> None:
        self.job = job
        self.stop = stop
        self.first_step = FirstStepRecord(job.run)
        self._step_losses: list[torch.Tensor] = []  # of the micro-batches since the last step
        self._uncounted_tokens = 0
        arguments, rows = job.arguments, job.rows.dataset
        self.num_rows = len(rows)  # rows after these only fill up the last batches
        if arguments.world_size > 1:
            rows = fill_up(rows, arguments.world_size * arguments.per_device_train_batch_size)
        evaluates = arguments.eval_strategy != "no" or arguments.eval_on_start
        super().__init__(
            model=job.model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=job.validation if evaluates else None,
            processing_class=job.tokenizer,
            callbacks=list(callbacks),
        )
        # Set afterwards: given a collator, TRL leaves the model without a padding token.
        self.data_collator = make_collator(
            job.tokenizer, arguments, keeps_rows_apart=job.rows.keeps_rows_apart
        )
        restore_adapter_dtype(job.model)
        check_trained_dtype(job.model)
        self.adapter_shapes = list_adapter_shapes(job.model)  # what a saved adapter must hold
        self.remove_callback(PrinterCallback)  # it writes to stdout, which is not ours to fill
        self.add_callback(SaveProbe(self))
        self.add_callback(self.first_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save adapter and tokenizer; the stock method also pickles the arguments.

        `training_args.bin` holds the hub token in clear text and runs code when it is loaded.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        model: CausalModel = self.model
        model.save_pretrained(folder, state_dict=state_dict)
        assert self.processing_class is not None
        self.processing_class.save_pretrained(folder)
        write_json(folder / ORIGIN_FILE, self.job.origin)
        (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT's placeholder card

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The stock order of the rows, then those that fill up the last round of batches."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.num_rows == len(rows):
            return super()._get_train_sampler(rows)
        order = super()._get_train_sampler(rows.select(range(self.num_rows)))
        data_seed = self.accelerator.dataloader_config.data_seed
        return FilledSampler(order, self.num_rows, len(rows), data_seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, read the adapter back, and seal; only then may an older checkpoint go."""
        checkpoint = (
            Path(str(self.args.output_dir)) / f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        )
        if self.args.should_save:  # what lies there was passed over: damaged, or never finished
            shutil.rmtree(checkpoint, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._check_saved_adapter(checkpoint, has_stepped=self.state.global_step >= 2)
            seal(checkpoint, self.args.world_size)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(self.args.output_dir), limit, best)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """The stock end, which removes all checkpoints but the best where only one is to be kept.

        A run that was stopped goes on from its last one (transformers 5.23).
        """
        limit = self.args.save_total_limit
        if self.stop.received is not None:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def probe_saving(self) -> None:
        """Save and read back before the first step: it must not fail after three days.

        Raises: TrainingError where the adapter on disk is not the one in memory.
        """
        folder = Path(str(self.args.output_dir)) / "_probe"
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
                f"the saved adapter is not the one that is trained: {fault}",
                f"{folder} (optimizer step {self.state.global_step})",
                "please report it with the recipe and `pip freeze`; older checkpoints are intact",
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card into checkpoints: the adapter folder gets one that is filled in."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward; its loss is looked at before the next step."""
        self.first_step.note(inputs)
        if "position_ids" in inputs:  # TRL counts one row of a batch without a mask (trl 1.16)
            positions = inputs["position_ids"]
            self._uncounted_tokens += positions.numel() - positions.size(1)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._step_losses.append(loss)
        return loss

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; under DeepSpeed looked at here, because its backward also steps."""
        result = super().compute_loss(model, *args, **kwargs)
        if self.is_deepspeed_enabled and model.training:
            self._refuse_non_finite("loss", result[0] if isinstance(result, tuple) else result)
        return result

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient, summed over all processes; the step comes next.

        One look at the device a step, not one a micro-batch. A loss that is no number on one
        process gives every process a norm that is none, so that all of them stop here. (Under
        float16 a norm may be infinite: the loss scale is too high, and the step is left out.)

        Under DeepSpeed the step is behind us. ZeRO leaves it out where the norm is not finite, with
        a warning, and the schedule would be one step ahead ever after (0.19 `engine.step`). Stage 0
        steps and knows no norm; there the weights themselves are looked at.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self.is_deepspeed_enabled:
            loss = torch.stack(self._step_losses).sum()
            if not math.isfinite(float(loss if self.args.fp16 else loss + 0.0 * norm)):
                self._refuse_non_finite("loss", loss)
                self._refuse_non_finite("gradient", norm)
        else:
            self._refuse_non_finite("gradient", _find_norm_of_step(model, norm))
        self._step_losses.clear()
        return norm

    def _refuse_non_finite(self, kind: str, value: torch.Tensor | float) -> None:
        """Raises: NonFiniteLoss before anything of this step is kept.

        The last checkpoint stays good. (The stock trainer logs 0.0 and saves NaN.)
        """
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
        if not math.isfinite(number):
            raise NonFiniteLoss(
                f"the {kind} is {number} at optimizer step {self.state.global_step + 1}",
                f"{self.args.output_dir}",
                "lower train.learning_rate or train in bfloat16/float32; "
                "the last checkpoint is from before this step",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One record; every process is here, so the token counts are summed here alone."""
        model: CausalModel = self.model
        if model.training and getattr(self.data_collator, "keeps_rows_apart", False):
            missed = torch.tensor(self._uncounted_tokens, device=self.args.device)
            self._total_train_tokens += int(self.accelerator.gather(missed).sum().item())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            self._uncounted_tokens = 0
        super().log(logs, start_time)


def _find_norm_of_step(engine: Any, norm: float | None) -> torch.Tensor | float:
    """A number that is finite where DeepSpeed's last step was made with a gradient that was."""
    if not engine.was_step_applied():
        return math.inf if norm is None else norm
    if norm is not None:
        return norm
    trained = [each.detach() for each in engine.parameters() if each.requires_grad]
    return torch.stack([each.norm() for each in trained]).sum()


def build_trainer(
    job: TrainingJob, callbacks: Sequence[TrainerCallback], stop: StopOnSignal
) -> LoraTrainer:
    """Build the trainer of a job.

    Raises: CapabilityError if a library that the recipe asks for is not installed.
    """
    try:
        return LoraTrainer(job, callbacks, stop)
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        raise CapabilityError(
            f"a library that the recipe asks for is missing: {' '.join(str(error).split())}",
            "train",
            "install it, for instance with pip install 'lora-sft[track]', or leave it out",
        ) from error


class SaveProbe(TrainerCallback):
    """Try a save once the model is as it will be trained: wrapped, spread, cast."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Save before the first step, and see that nobody cast the adapter."""
        model: CausalModel = self.trainer.model
        check_trained_dtype(model)
        self.trainer.probe_saving()
