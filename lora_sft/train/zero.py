"""Make DeepSpeed's settings for a run, and do what ZeRO needs before and after training.

This is the only file that imports DeepSpeed. During training, accelerate drives the engine under
the Trainer. The recipe decides the precision: bfloat16 is computed with `torch_autocast`, as
without DeepSpeed. DeepSpeed's `bf16` section is not used, because it would cast the adapter too
(engine 0.19 `_cast_module_mixed_precision`).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lora_sft.errors import RecipeError
from lora_sft.model.base_model import CausalModel, find_device
from lora_sft.recipe import Recipe
from lora_sft.recipe.deepspeed_policy import AUTO, OWNED_NUMBERS, OWNED_SECTIONS, read_policy

SHARD_FOLDER = "global_step*"  # DeepSpeed's folder inside a checkpoint
UNIVERSAL_SUFFIX = "_universal"
# ds_to_universal 0.19 converts only the states `exp_avg` and `exp_avg_sq`, in float32.
CONVERTIBLE = (None, "adamw_torch", "adamw_torch_fused")
SHARED_MEMORY_KERNEL = "deepspeed_shm_comm"


def make_deepspeed_config(
    recipe: Recipe, *, autocast_bfloat16: bool, universal: bool
) -> dict[str, Any] | None:
    """Return DeepSpeed's settings, from the policy file and the recipe; None without DeepSpeed.

    Args:
        recipe: The recipe, which owns batch size, learning rate, precision and clipping.
        autocast_bfloat16: Whether the model computes in bfloat16.
        universal: Whether the run continues from a checkpoint that was converted for another number
            of processes.
    """
    policy = read_policy(recipe)
    if policy is None:
        return None
    settings = copy.deepcopy(policy.settings)
    for section in OWNED_SECTIONS:
        settings.pop(section, None)
    settings.update(dict.fromkeys(OWNED_NUMBERS, AUTO))
    if autocast_bfloat16:
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            # The gradients of a module in this list would be summed in bfloat16.
            "lower_precision_safe_modules": [],
        }
    if universal:
        settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
    return settings


def autocasts_bfloat16(settings: Any) -> bool:
    """Return whether DeepSpeed's settings compute in bfloat16; False for None."""
    return isinstance(settings, dict) and "torch_autocast" in settings


def prepare_environment() -> None:
    """Set what DeepSpeed reads when it starts.

    Without a launcher, this process becomes rank 0 in a world of size 1.
    """
    if find_device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed import ops

        # This kernel would be compiled first, for minutes. gloo does the same without it.
        ops.__compatible_ops__[SHARED_MEMORY_KERNEL] = False
    # The Trainer counts the accumulation itself and gives accelerate the value 1. accelerate warns
    # that DeepSpeed has another value. The warning is wrong here.
    logging.getLogger("accelerate.accelerator").addFilter(_is_not_accumulation_warning)
    if "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    one_process = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(one_process, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _is_not_accumulation_warning(record: logging.LogRecord) -> bool:
    return "Gradient accumulation steps mismatch" not in record.getMessage()


def use_process_group(settings: dict[str, Any] | None) -> None:
    """Let DeepSpeed use the open process group: it shards the base model while the model loads."""
    if settings is not None:
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False)


def stop_sharding_models() -> None:
    """Load later models without sharding, because this process may merge or evaluate."""
    unset_hf_deepspeed_config()


@contextmanager
def gathered(model: CausalModel) -> Iterator[None]:
    """Gather the trained parameters on every process inside the block; all processes enter it."""
    shards = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and hasattr(parameter, "ds_id")
    ]
    if not shards:
        yield
        return
    import deepspeed  # slow to import, and not every run needs it

    with deepspeed.zero.GatheredParameters(shards):
        yield


def has_shards(checkpoint: Path) -> bool:
    """Return whether DeepSpeed wrote its states into a checkpoint."""
    return any(checkpoint.glob(SHARD_FOLDER))


def list_shard_files(checkpoint: Path) -> list[str] | None:
    """Return the names of DeepSpeed's files in a checkpoint; None if it has no states.

    Converted states are not listed: `convert_to_universal` deletes and writes them before use.
    A link is listed like a file, also if it leads to a folder. DeepSpeed writes no links.
    """
    if not has_shards(checkpoint):
        return None
    return sorted(
        path.relative_to(checkpoint).as_posix()
        for folder in checkpoint.glob(SHARD_FOLDER)
        if not folder.name.endswith(UNIVERSAL_SUFFIX)
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def check_can_convert(recipe: Recipe, world_size: int) -> None:
    """Check that another number of processes can load the states of the recipe's optimizer.

    They cannot for the 8-bit optimizers of bitsandbytes, whose states are scaled by blocks of one
    process's shard.

    Raises: RecipeError if they cannot.
    """
    optimizer = recipe.train.get("optim")
    if optimizer not in CONVERTIBLE:
        raise RecipeError(
            f"{world_size} processes cannot load the optimizer states of this checkpoint: another "
            f"number of processes wrote them, and DeepSpeed cannot convert those of {optimizer}",
            recipe.where("train.optim"),
            "start as many processes as before; or start a new run with "
            "train.optim: adamw_torch_fused, whose states can be converted",
        )


def convert_to_universal(checkpoint: Path) -> None:
    """Convert a checkpoint's states to a form that any number of processes can load.

    The states are written beside the old ones, by DeepSpeed's converter (`ds_to_universal`, 0.19).
    It loads pickles, so hashes and signature of the checkpoint must be verified before.
    """
    from deepspeed.checkpoint import ds_to_universal

    source = _find_shards(checkpoint)
    target = source.with_name(source.name + UNIVERSAL_SUFFIX)
    _remove_folder(target)  # an existing folder was never verified
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(None):  # it prints each file to stdout
        ds_to_universal.main(arguments)


def _remove_folder(folder: Path) -> None:
    """Delete a folder; of a link, only the link. `shutil.rmtree` alone refuses a link.

    Raises: OSError if it cannot be deleted.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


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
            "remove train.deepspeed, or start a new run in another output_dir",
        )
    return found[-1]
