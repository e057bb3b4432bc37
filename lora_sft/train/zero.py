"""The one door to DeepSpeed: its settings for a run, and what ZeRO needs at both ends of one.

The engine itself is driven by accelerate under the Trainer; nothing of it is rebuilt here.
Precision is the recipe's: bfloat16 comes through `torch_autocast`, as it does without DeepSpeed,
because the `bf16` section would cast the adapter too (engine 0.19 `_cast_module_mixed_precision`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lora_sft.errors import CapabilityError, RecipeError
from lora_sft.model.base_model import CausalModel, find_device
from lora_sft.recipe import Recipe
from lora_sft.recipe.deepspeed_policy import AUTO, OWNED_NUMBERS, OWNED_SECTIONS, read_policy

SHARD_FOLDER = "global_step*"  # DeepSpeed's own, inside a checkpoint
UNIVERSAL_SUFFIX = "_universal"
# ds_to_universal 0.19 knows the states `exp_avg` and `exp_avg_sq` alone, in float32.
CONVERTIBLE = (None, "adamw_torch", "adamw_torch_fused")
SHARED_MEMORY_KERNEL = "deepspeed_shm_comm"


def make_deepspeed_config(
    recipe: Recipe, *, autocast_bfloat16: bool, universal: bool
) -> dict[str, Any] | None:
    """DeepSpeed's settings: the policy, and from the recipe what the recipe owns.

    `universal`: go on from a checkpoint that was converted for another number of processes.

    Raises: CapabilityError where DeepSpeed is not installed.
    """
    policy = read_policy(recipe)
    if policy is None:
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise CapabilityError(
            "train.deepspeed needs DeepSpeed, which is not installed",
            recipe.where("train.deepspeed"),
            "DS_BUILD_OPS=0 pip install 'lora-sft[deepspeed]'",
        )
    settings = copy.deepcopy(policy.settings)
    for section in OWNED_SECTIONS:
        settings.pop(section, None)
    settings.update(dict.fromkeys(OWNED_NUMBERS, AUTO))
    if autocast_bfloat16:
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            # Those listed would have their gradients summed in bfloat16.
            "lower_precision_safe_modules": [],
        }
    if universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    return settings


def autocasts_bfloat16(settings: Any) -> bool:
    """Whether these settings of DeepSpeed's (None: it is not used) compute in bfloat16."""
    return isinstance(settings, dict) and "torch_autocast" in settings


def enter() -> None:
    """Settle what DeepSpeed looks at when it starts; alone, this process is a world of one."""
    if find_device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed import ops

        # Without it gloo does the same; it would be compiled first, for minutes.
        ops.__compatible_ops__[SHARED_MEMORY_KERNEL] = False
    # The Trainer counts the accumulation itself, and tells accelerate of one step.
    logging.getLogger("accelerate.accelerator").addFilter(_is_no_false_alarm)
    if "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _is_no_false_alarm(record: logging.LogRecord) -> bool:
    return "Gradient accumulation steps mismatch" not in record.getMessage()


def join(settings: dict[str, Any] | None) -> None:
    """Let DeepSpeed take over the open process group; it spreads a base while that loads."""
    if settings is not None:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)


def leave() -> None:
    """Let models be loaded whole again: after training this process may merge or evaluate."""
    unset_hf_deepspeed_config()


@contextmanager
def gathered(model: CausalModel) -> Iterator[None]:
    """The trained parameters in whole on every process; entered by all of them together."""
    shares = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and hasattr(parameter, "ds_id")
    ]
    if not shares:
        yield
        return
    import deepspeed  # heavy, and not needed by every run

    with deepspeed.zero.GatheredParameters(shares):
        yield


def has_shards(checkpoint: Path) -> bool:
    """Whether DeepSpeed wrote its states into a checkpoint."""
    return any(checkpoint.glob(SHARD_FOLDER))


def check_can_convert(recipe: Recipe, world_size: int) -> None:
    """Raises: RecipeError where another number of processes cannot take up this optimizer's states.

    bitsandbytes' 8-bit ones are scaled by blocks of the share that one process had.
    """
    optimizer = recipe.train.get("optim")
    if optimizer not in CONVERTIBLE:
        raise RecipeError(
            f"the states of {optimizer} are in shares that {world_size} processes cannot take up "
            "(DeepSpeed converts those of AdamW alone)",
            recipe.where("train.optim"),
            "start as many processes as before; for a run that may change their number: "
            "train.optim: adamw_torch_fused from the beginning",
        )


def convert_to_universal(checkpoint: Path) -> None:
    """Write a checkpoint's states once more in a form that any number of processes can load.

    DeepSpeed's own converter (`ds_to_universal`, 0.19). It unpickles: only for a checkpoint whose
    hashes were verified.
    """
    from deepspeed.checkpoint import ds_to_universal

    source = _find_shards(checkpoint)
    target = source.with_name(source.name + UNIVERSAL_SUFFIX)
    shutil.rmtree(target, ignore_errors=True)  # nobody vouches for one that lies there
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(None):  # it prints each file; stdout is not ours to fill
        ds_to_universal.main(arguments)


def _find_shards(checkpoint: Path) -> Path:
    found = sorted(
        folder
        for folder in checkpoint.glob(SHARD_FOLDER)
        if not folder.name.endswith(UNIVERSAL_SUFFIX)
    )
    if not found:
        raise RecipeError(
            "the checkpoint was written without DeepSpeed",
            f"{checkpoint}  train.deepspeed",
            "leave out train.deepspeed, or train anew into another output_dir",
        )
    return found[-1]
