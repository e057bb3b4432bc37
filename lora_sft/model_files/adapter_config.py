"""Read PEFT's config of a saved adapter, and check the fields that lora-sft and PEFT compute with.

PEFT checks few types itself. It would fail late, or multiply with a value that is not a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lora_sft.errors import ExportError, ModelError
from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lora_sft.model_files.json_files import Kinds, read_json_object
from lora_sft.model_files.stored_tensors import read_header

COPY_AGAIN = "copy or download the adapter again, or correct the file"
PEFT_RANK = 8  # the rank of a config without `r`
# peft 0.21 `LoraConfig`.
_NAMES = list[str] | str | None
KINDS: Kinds = {
    "alora_invocation_tokens": list[int] | None,
    "alpha_pattern": dict[str, float] | None,
    "arrow_config": dict[str, Any] | None,
    "auto_mapping": dict[str, Any] | None,
    "base_model_name_or_path": str | None,
    "bias": Literal["none", "all", "lora_only"],
    "corda_config": dict[str, Any] | None,
    "ensure_weight_tying": bool,
    "eva_config": dict[str, Any] | None,
    "exclude_modules": _NAMES,
    "fan_in_fan_out": bool,
    "inference_mode": bool,
    "init_lora_weights": bool | str,
    "kasa_config": dict[str, Any] | None,
    "layer_replication": list[list[int]] | None,
    "layers_pattern": _NAMES,
    "layers_to_transform": list[int] | int | None,
    "loftq_config": dict[str, Any] | None,
    "lora_alpha": float,
    "lora_bias": bool,
    "lora_dropout": float,
    "lora_ga_config": dict[str, Any] | None,
    "megatron_config": dict[str, Any] | None,
    "megatron_core": str | None,
    "modules_to_save": list[str] | None,
    "monteclora_config": dict[str, Any] | None,
    "peft_type": str | None,
    "peft_version": str | None,
    "qalora_group_size": int,
    "r": int,
    "rank_pattern": dict[str, int] | None,
    "revision": str | None,
    "runtime_config": dict[str, Any] | None,
    "target_modules": _NAMES,
    "target_parameters": list[str] | None,
    "task_type": str | None,
    "trainable_token_indices": list[int] | dict[str, list[int]] | None,
    "use_bdlora": dict[str, Any] | None,
    "use_dora": bool,
    "use_qalora": bool,
    "use_rslora": bool,
    "velora_config": dict[str, Any] | None,
}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the content of `adapter_config.json` in a folder.

    Raises:
        ExportError: If the folder does not hold an adapter.
        ModelError: If the file is damaged, if a field has another type than PEFT's, or if a rank is
            not positive.
    """
    path = folder / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise ExportError(
            f"there is no adapter in this folder: {ADAPTER_CONFIG_FILE} is missing",
            str(folder),
            "give a run directory, its adapter/ folder, or a PEFT adapter folder",
        )
    config: dict[str, Any] = read_json_object(path, KINDS, fix=COPY_AGAIN)
    for name, rank in _list_ranks(config).items():
        if rank < 1:
            raise ModelError(
                f"{path.name}: the rank {name} is {rank:,}", f"{path}  {name}", COPY_AGAIN
            )
    return config


def check_adapter_files(folder: Path) -> dict[str, Any]:
    """Return the config of an adapter, after a check of it and of the header of its weights.

    PEFT makes matrices of the config's ranks before it reads the weights, whatever memory they
    need. So every rank must be one that the adapter's tensors can have.

    Raises: ModelError that names the file.
    """
    path = folder / ADAPTER_CONFIG_FILE
    config = read_adapter_config(folder)
    tensors = read_header(folder / ADAPTER_WEIGHTS_FILE, ModelError).values()
    largest = max((size for each in tensors for size in each.shape), default=0)
    for name, rank in _list_ranks(config).items():
        if rank > largest:
            raise ModelError(
                f"{path.name}: the rank {name} is {rank:,}, but the largest tensor of the adapter "
                f"has {largest:,} rows or columns",
                f"{path}  {name}",
                COPY_AGAIN,
            )
    return config


def _list_ranks(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the rank of the config, and those of the modules that have a rank of their own."""
    return {"r": config.get("r", PEFT_RANK), **(config.get("rank_pattern") or {})}
