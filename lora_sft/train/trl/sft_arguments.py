"""Build SFTConfig from a recipe and a batch plan."""

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

# Fields of the recipe's `train` section that are ours, not SFTConfig's.
OWN_FIELDS = frozenset({"global_batch_size", "early_stopping_patience"})


def make_sft_config(
    recipe: Recipe, batch: BatchPlan, run: RunDirectory, *, universal: bool = False
) -> SFTConfig:
    """The library's arguments for this recipe on this machine.

    Building it starts the process group where a launcher asked for one, so it comes before the
    model is loaded. `universal`: DeepSpeed goes on from states of another number of processes.

    Raises: CapabilityError where the device lacks the dtype; RecipeError for settings that the
    library itself refuses.
    """
    if universal:
        zero.check_can_convert(recipe, batch.world_size)
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
