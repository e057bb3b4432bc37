"""The one door to TRL: an `SFTTrainer` over rows that are already tokens and labels.

What TRL would prepare (templates, masks, truncation, packing) the data room has done and
counted; here TRL trains. The subclass only takes away: no pickled arguments, no card in a
checkpoint, no bfloat16 adapters, no step on a loss that is not finite. Packed rows become batches
in `RowCollator`.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lora_sft.data.supervised_row import IGNORED_LABEL
from lora_sft.errors import CapabilityError, NonFiniteLoss, RecipeError, TrainingError
from lora_sft.log import say
from lora_sft.model.adapter import (
    find_fault_in_saved_adapter,
    list_adapter_shapes,
    restore_adapter_dtype,
)
from lora_sft.model.base_model import CausalModel, find_device
from lora_sft.model.census import check_trained_dtype
from lora_sft.plan.batch import BatchPlan
from lora_sft.recipe import Recipe
from lora_sft.run_directory import CHECKPOINT_PREFIX, ORIGIN_FILE, RunDirectory, write_json
from lora_sft.train import zero
from lora_sft.train.callbacks import StopOnSignal
from lora_sft.train.checkpoints.sealing import seal
from lora_sft.train.even_shares import FilledSampler, fill_up
from lora_sft.train.first_step import FirstStepRecord
from lora_sft.train.packing import Packing

# Fields of the recipe's `train` section that are ours, not SFTConfig's.
OWN_FIELDS = frozenset({"global_batch_size", "early_stopping_patience"})


@dataclass
class RowCollator(DataCollatorForLanguageModeling):
    """Batches of plain rows (padded, with a mask) or of packed rows (`seq_lengths`).

    A packed row goes without a mask and with positions that start anew at each document:
    transformers finds the borders in them (5.23 `masking_utils.find_packed_sequence_indices`), but
    only where there is no mask, even of ones. The first token of a document is never learned, for
    it would be predicted from the last of another.

    All packed rows of a batch lie in one line, with the borders that flash attention reads, or,
    where `keeps_rows_apart`, in a line each, filled up with documents of one token.
    """

    keeps_rows_apart: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One micro-batch."""
        is_packed = "seq_lengths" in examples[0]
        self.padding_free = is_packed and not self.keeps_rows_apart
        self.return_position_ids = is_packed
        batch: dict[str, Any] = super().torch_call(examples)
        if is_packed and self.keeps_rows_apart:
            del batch["attention_mask"]
            batch["labels"][batch["position_ids"] == 0] = IGNORED_LABEL
        return batch


def make_collator(
    tokenizer: PreTrainedTokenizerBase, arguments: Any, *, keeps_rows_apart: bool
) -> RowCollator:
    """The collator of a run's rows."""
    return RowCollator(
        pad_token_id=tokenizer.pad_token_id,
        pad_to_multiple_of=arguments.pad_to_multiple_of,
        keeps_rows_apart=keeps_rows_apart,
    )


class LoraTrainer(SFTTrainer):
    """SFTTrainer that leaves nothing behind but what a run directory promises."""

    origin: Mapping[str, Any] = {}  # the base that the adapter belongs to, saved beside it
    first_step: FirstStepRecord | None = None
    stop: StopOnSignal | None = None
    num_rows: int | None = None  # of the training rows; what follows them only fills up

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._step_losses: list[torch.Tensor] = []  # of the micro-batches since the last step
        self._uncounted_tokens = 0
        super().__init__(*args, **kwargs)
        self.adapter_shapes: Mapping[str, torch.Size] = {}  # what a saved adapter must hold

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
        write_json(folder / ORIGIN_FILE, self.origin)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's placeholder card

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The stock order of the rows, then those that fill up the last round of batches."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.num_rows is None or self.num_rows == len(rows):
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
        if self.stop is not None and self.stop.received is not None:
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
            folder / "adapter_model.safetensors", self.adapter_shapes, has_stepped=has_stepped
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
        if self.first_step is not None:
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


def make_sft_config(
    recipe: Recipe, batch: BatchPlan, run: RunDirectory, *, universal: bool = False
) -> SFTConfig:
    """The library's arguments for this recipe on this machine.

    Building it starts the process group where a launcher asked for one, so it comes before the
    model is loaded. `universal`: DeepSpeed goes on from states of another number of processes.

    Raises: CapabilityError where the device lacks the dtype; RecipeError for settings that the
    library itself refuses.
    """
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path / "tensorboard"))
    written = {name: value for name, value in recipe.train.items() if name not in OWN_FIELDS}
    if written.get("optim") is None:
        written["optim"] = default_optimizer(recipe)
    decided_elsewhere = {
        "output_dir": str(run.checkpoints),
        "gradient_accumulation_steps": batch.accumulation_steps,
        "disable_tqdm": True,
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    settings = {**_library_defaults(recipe), **written, **decided_elsewhere}
    if (
        settings["bf16"]
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise CapabilityError(
            f"bfloat16 is asked for, and {torch.cuda.get_device_name()} does not compute it",
            recipe.where("model.dtype"),
            "write model.dtype: float16 (or float32)",
        )
    deepspeed = zero.make_deepspeed_config(
        recipe, autocast_bfloat16=settings["bf16"], universal=universal
    )
    if deepspeed is not None:  # which then owns precision
        zero.enter()
        settings |= {"deepspeed": deepspeed, "bf16": False}
    try:
        arguments = SFTConfig(**settings)
    except (ValueError, TypeError) as error:  # the library's own cross-field rules
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"SFTConfig refuses these settings: {reason}",
            recipe.where("train"),
            "change the field that the message names (under train, without the dashes)",
        ) from error
    zero.join(deepspeed)
    _use_one_gpu(arguments, batch)
    return arguments


def _use_one_gpu(arguments: SFTConfig, batch: BatchPlan) -> None:
    """Keep the Trainer from multiplying the batch by the GPUs it sees without a launcher."""
    if arguments.n_gpu > 1:
        say(
            f"{arguments.n_gpu} GPUs are visible and this process uses the first; to use them all: "
            f"torchrun --nproc_per_node {arguments.n_gpu} -m lora_sft train RECIPE"
        )
        arguments._n_gpu = 1
    assert arguments.train_batch_size == batch.micro_batch_size


def _library_defaults(recipe: Recipe) -> dict[str, Any]:
    """Defaults that depend on the model and the machine; the recipe may set each otherwise."""
    on_cpu = find_device().type == "cpu"
    mixed = not (recipe.train.get("fp16") or recipe.train.get("bf16"))
    return {
        "bf16": mixed and recipe.model.dtype == "bfloat16",
        "fp16": mixed and recipe.model.dtype == "float16" and not on_cpu,
        "activation_checkpointing": True,  # TRL's default, under its newer name
        "use_cpu": on_cpu,
        "report_to": "none",
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,
        # Patience counted before an interruption counts after it.
        "restore_callback_states_from_checkpoint": bool(
            recipe.train.get("early_stopping_patience")
        ),
    }


def default_optimizer(recipe: Recipe) -> str:
    """Paged 8-bit AdamW for a 4-bit base on CUDA (QLoRA, section 3), else fused AdamW.

    Under DeepSpeed the states are spread or offloaded instead, and can only then be taken up by
    another number of processes.
    """
    four_bit = (recipe.quantization or {}).get("load_in_4bit")
    if four_bit and recipe.train.get("deepspeed") is None and find_device().type == "cuda":
        return "paged_adamw_8bit"
    return "adamw_torch_fused"


def build_trainer(
    arguments: SFTConfig,
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    packing: Packing,
    validation: Dataset | None,
    callbacks: Sequence[TrainerCallback],
) -> LoraTrainer:
    """The trainer over tokenised rows (`input_ids`, `labels`), its adapter weights in float32."""
    evaluates = arguments.eval_strategy != "no" or arguments.eval_on_start
    rows = packing.rows
    if arguments.world_size > 1:
        rows = fill_up(rows, arguments.world_size * arguments.per_device_train_batch_size)
    try:
        trainer = LoraTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=validation if evaluates else None,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    except (ImportError, RuntimeError) as error:
        if "install" not in str(error):
            raise
        raise CapabilityError(
            f"a library that the recipe asks for is missing: {' '.join(str(error).split())}",
            "train",
            "install it, for instance with pip install 'lora-sft[track]', or leave it out",
        ) from error
    # Set afterwards: given a collator, TRL leaves the model without a padding token.
    trainer.data_collator = make_collator(
        tokenizer, arguments, keeps_rows_apart=packing.keeps_rows_apart
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is not ours to fill
    restore_adapter_dtype(model)
    check_trained_dtype(model)
    trainer.adapter_shapes = list_adapter_shapes(model)
    trainer.num_rows = len(packing.rows)
    trainer.add_callback(SaveProbe(trainer))
    return trainer


class SaveProbe(TrainerCallback):
    """Try a save once the model is as it will be trained: wrapped, spread, cast."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Save before the first step, and see that nobody cast the adapter."""
        model: CausalModel = self.trainer.model
        check_trained_dtype(model)
        self.trainer.probe_saving()
