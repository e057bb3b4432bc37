"""The one door to TRL: an `SFTTrainer` over rows that are already tokens and labels.

What TRL would prepare (templates, masks, truncation, packing) the data room has done and
counted; here TRL trains. The subclass only takes away: no pickled arguments, no card in a
checkpoint, no bfloat16 adapters, no step on a loss that is not finite. Packed rows become batches
in `RowCollator`.
"""

from __future__ import annotations

import math
import os
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
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lora_sft.data.supervised_row import IGNORED_LABEL
from lora_sft.errors import CapabilityError, NonFiniteLoss, RecipeError
from lora_sft.log import say
from lora_sft.model.adapter import restore_adapter_dtype
from lora_sft.model.base_model import CausalModel, find_device
from lora_sft.plan.batch import BatchPlan
from lora_sft.recipe import Recipe
from lora_sft.run_directory import ORIGIN_FILE, RunDirectory, write_json
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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save adapter and tokenizer; the stock method also pickles the arguments.

        `training_args.bin` holds the hub token in clear text and runs code when it is loaded.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        model: CausalModel = self.model
        model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save)
        if self.args.should_save:
            assert self.processing_class is not None
            self.processing_class.save_pretrained(folder)
            write_json(folder / ORIGIN_FILE, self.origin)
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's placeholder card

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card into checkpoints: the adapter folder gets one that is filled in."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward; refuses to go on from a loss that is no number.

        Raises: NonFiniteLoss before the optimizer has moved a weight, so that the last
        checkpoint stays good. (The stock trainer logs 0.0 and saves NaN.)
        """
        loss = super().training_step(*args, **kwargs)
        self._count_tokens_of_all_rows(*args)
        if not math.isfinite(loss.item()):
            raise NonFiniteLoss(
                f"the loss is {loss.item()} at optimizer step {self.state.global_step + 1}",
                f"{self.args.output_dir}",
                "lower train.learning_rate or train in bfloat16/float32; "
                "the last checkpoint is from before this step",
            )
        return loss

    def _count_tokens_of_all_rows(self, model: Any, inputs: Mapping[str, Any], *_: Any) -> None:
        """Add what TRL misses: of a batch without a mask it counts one row (trl 1.16)."""
        if getattr(self.data_collator, "keeps_rows_apart", False) and "position_ids" in inputs:
            positions = inputs["position_ids"]
            missed = torch.tensor(positions.numel() - positions.size(1), device=positions.device)
            self._total_train_tokens += int(self.accelerator.gather(missed).sum().item())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


def make_sft_config(recipe: Recipe, batch: BatchPlan, run: RunDirectory) -> SFTConfig:
    """The library's arguments for this recipe on this machine.

    Building it starts the process group where a launcher asked for one, so it comes before the
    model is loaded.

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
    if recipe.deepspeed_location is not None:
        written["deepspeed"] = recipe.deepspeed_location
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
    try:
        arguments = SFTConfig(**settings)
    except (ValueError, TypeError) as error:  # the library's own cross-field rules
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"SFTConfig refuses these settings: {reason}",
            recipe.where("train"),
            "change the field that the message names (under train, without the dashes)",
        ) from error
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
    """Paged 8-bit AdamW for a 4-bit base on CUDA (QLoRA, section 3), else fused AdamW."""
    four_bit = (recipe.quantization or {}).get("load_in_4bit")
    if four_bit and find_device().type == "cuda":
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
    try:
        trainer = LoraTrainer(
            model=model,
            args=arguments,
            train_dataset=packing.rows,
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
    return trainer
