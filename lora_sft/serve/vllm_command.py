"""Make the command with which vLLM serves a merged model, or an adapter with its base.

By default vLLM reads the tokenizer, the chat template, the stop tokens and the sampling settings
from the base. For an adapter, options point each of them to the adapter's folder. This file also
refuses an adapter that vLLM does not load, or that it loads but silently applies wrongly.

Source: vLLM 0.27: `vllm serve --help`, `vllm/config/lora.py` (ranks) and
`vllm/lora/peft_helper.py` (features of an adapter).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.errors import CapabilityError
from lora_sft.export.adapter_origin import AdapterOrigin
from lora_sft.file_names import ADAPTER_WEIGHTS_FILE, CHAT_TEMPLATE_FILE
from lora_sft.model_files.adapter_config import PEFT_RANK, read_adapter_config
from lora_sft.model_files.module_patterns import check_saved_patterns
from lora_sft.model_files.stored_tensors import read_header
from lora_sft.serve.loaded_model import ModelFolder

# The values that vLLM accepts for `--max-lora-rank`.
RANK_LIMITS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vLLM supports only plain LoRA. These fields of PEFT's LoraConfig must have these values.
PLAIN_LORA_FIELDS: tuple[tuple[str, Any], ...] = (
    ("use_dora", False),
    ("bias", "none"),
    ("modules_to_save", None),
    ("rank_pattern", {}),
    ("alpha_pattern", {}),
    ("target_parameters", None),
    ("trainable_token_indices", None),
)
API_KEY_VARIABLE = "VLLM_API_KEY"


def is_vllm_installed() -> bool:
    """Return whether vLLM is installed in this environment."""
    return importlib.util.find_spec("vllm") is not None


def make_vllm_command(model: ModelFolder, host: str, port: int) -> list[str]:
    """Return the `vllm serve` command for a model folder.

    Raises: CapabilityError if vLLM cannot serve the adapter.
    """
    address = ["--host", host, "--port", str(port)]
    if model.origin is None:
        trust = ["--trust-remote-code"] if model.trust_remote_code else []
        name = ["--served-model-name", model.name]
        return ["vllm", "serve", str(model.path), *name, *trust, *address]
    folder, origin = str(model.path), model.origin
    rank = find_rank_limit(model.path)
    base = origin.model_name_or_path
    return [
        *("vllm", "serve", base, "--served-model-name", f"{model.name}-base"),
        *("--enable-lora", "--max-lora-rank", str(rank)),
        *("--lora-modules", f"{model.name}={folder}"),
        *("--tokenizer", folder, "--generation-config", folder),
        *_list_base_options(model.path, origin),
        *(["--trust-remote-code"] if model.trust_remote_code else []),
        *address,
    ]


def find_rank_limit(adapter: Path) -> int:
    """Return the smallest of vLLM's rank limits that is not below the adapter's rank.

    Raises:
        CapabilityError: If the rank is too large or the adapter is not plain LoRA.
        ModelError: If a pattern of its config needs too much time.
    """
    config = read_adapter_config(adapter)
    weights = adapter / ADAPTER_WEIGHTS_FILE
    check_saved_patterns(adapter, config, read_header(weights) if weights.exists() else ())
    unsupported = [
        name for name, plain in PLAIN_LORA_FIELDS if config.get(name) not in (plain, None)
    ]
    limit = next((limit for limit in RANK_LIMITS if limit >= config.get("r", PEFT_RANK)), None)
    if not unsupported and limit is not None:
        return limit
    raise CapabilityError(
        f"vLLM cannot serve this adapter with its base: {', '.join(unsupported) or 'r'} is set to "
        f"{_list_values(config, unsupported or ['r'])}",
        str(adapter),
        f"merge the adapter and serve the merged folder: lora-sft merge {adapter} OUT",
    )


def _list_values(config: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(json.dumps(config.get(name)) for name in names)


def _list_base_options(adapter: Path, origin: AdapterOrigin) -> list[str]:
    """Return the options with which vLLM loads the base as it was in training.

    For a 4-bit base, vLLM itself quantises to NF4 with double quantisation.
    """
    template = adapter / CHAT_TEMPLATE_FILE
    stored = dict(origin.quantization or {})
    return [
        *(["--chat-template", str(template)] if template.exists() else []),
        *(["--dtype", origin.dtype] if origin.dtype else []),
        *(["--revision", origin.revision] if origin.revision else []),
        *(["--quantization", "bitsandbytes"] if stored.get("load_in_4bit") else []),
    ]


def replace_process_with_vllm(command: list[str], api_key: str | None) -> None:
    """Replace this process with vLLM, so that vLLM gets the signals and sets the exit code.

    vLLM reads the key from the environment. On the command line, a process list would show it.

    Raises: CapabilityError if the program is not found.
    """
    beside = Path(sys.executable).with_name(command[0])
    program = str(beside) if beside.exists() else shutil.which(command[0])
    if program is None:
        raise CapabilityError(
            "the program `vllm` is not on the PATH",
            "--backend vllm",
            "install vLLM: pip install vllm",
        )
    environment = {**os.environ, **({API_KEY_VARIABLE: api_key} if api_key else {})}
    os.execve(program, [program, *command[1:]], environment)
