"""Make TRL's SFTConfig from a recipe and a batch plan."""

from __future__ import annotations

import os
from typing import Any

import torch
from trl import SFTConfig

from lora_sft.errors import CapabilityError, RecipeError
from lora_sft.log import say
from lora_sft.model.base_model import find_device
from lora_sft.plan.batch import BatchPlan
from lora_sft.recipe import Recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train import zero

# Fields of the recipe's `train` section that SFTConfig does not have.
OWN_FIELDS = frozenset({"global_batch_size", "early_stopping_patience"})


def make_sft_config(
    recipe: Recipe, batch: BatchPlan, run: RunDirectory, *, universal: bool = False
) -> SFTConfig:
    """Return TRL's arguments for this recipe on this machine.

    Under a launcher this opens the process group, so it must be called before the model is loaded.

    Args:
        recipe: The recipe.
        batch: How the global batch is divided.
        run: The run directory.
        universal: Whether DeepSpeed continues from the states of another number of processes.

    Raises:
        CapabilityError: If the GPU does not support bfloat16.
        RecipeError: If SFTConfig refuses the settings.
    """
    if universal:
        zero.check_can_convert(recipe, batch.world_size)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path / "tensorboard"))
    written = {name: value for name, value in recipe.train.items() if name not in OWN_FIELDS}
    if written.get("optim") is None:
        written["optim"] = choose_optimizer(recipe)
    decided_elsewhere = {
        "output_dir": str(run.checkpoints),
        "gradient_accumulation_steps": batch.accumulation_steps,
        "disable_tqdm": True,
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    settings = {**_choose_defaults(recipe), **written, **decided_elsewhere}
    if (
        settings["bf16"]
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise CapabilityError(
            f"the recipe asks for bfloat16, but {torch.cuda.get_device_name()} does not support it",
            recipe.where("model.dtype"),
            "write model.dtype: float16 (or float32)",
        )
    deepspeed = zero.make_deepspeed_config(
        recipe, autocast_bfloat16=settings["bf16"], universal=universal
    )
    if deepspeed is not None:  # the Trainer must not set bfloat16 then: DeepSpeed does
        zero.prepare_environment()
        settings |= {"deepspeed": deepspeed, "bf16": False}
    try:
        arguments = SFTConfig(**settings)
    except (ValueError, TypeError) as error:  # SFTConfig's own rules across fields
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"SFTConfig refuses these settings: {reason}",
            recipe.where("train"),
            "change the field that the message names; write it under train, without dashes",
        ) from error
    zero.use_process_group(deepspeed)
    _use_one_gpu(arguments, batch)
    return arguments


def _use_one_gpu(arguments: SFTConfig, batch: BatchPlan) -> None:
    """Use one GPU per process; without a launcher the Trainer would use all in a larger batch."""
    if arguments.n_gpu > 1:
        say(
            f"this process uses one of {arguments.n_gpu} visible GPUs; to use all of them: "
            f"torchrun --nproc_per_node {arguments.n_gpu} -m lora_sft train RECIPE"
        )
        arguments._n_gpu = 1
    assert arguments.train_batch_size == batch.micro_batch_size


def _choose_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return defaults that depend on the model and the machine; the recipe overrides each."""
    on_cpu = find_device().type == "cpu"
    mixed = not (recipe.train.get("fp16") or recipe.train.get("bf16"))
    return {
        "bf16": mixed and recipe.model.dtype == "bfloat16",
        "fp16": mixed and recipe.model.dtype == "float16" and not on_cpu,
        "activation_checkpointing": True,  # TRL's default, under the new name of the field
        "use_cpu": on_cpu,
        "report_to": "none",
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,
    }


def choose_optimizer(recipe: Recipe) -> str:
    """Return paged 8-bit AdamW for a 4-bit base model on CUDA (QLoRA, section 3), else fused AdamW.

    Under DeepSpeed it is fused AdamW too: ZeRO shards or offloads the states, and another number of
    processes can load only the states of an optimizer that is not 8-bit.
    """
    four_bit = (recipe.quantization or {}).get("load_in_4bit")
    if four_bit and recipe.train.get("deepspeed") is None and find_device().type == "cuda":
        return "paged_adamw_8bit"
    return "adamw_torch_fused"
