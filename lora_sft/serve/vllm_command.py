"""The command line that makes vLLM serve a merged folder, or an adapter beside its base.

vLLM takes tokenizer, chat template, stop tokens and sampling from the base unless it is told
otherwise, so for an adapter each is pointed at the adapter's folder. What vLLM does not load, or
loads and applies wrongly without a word, is refused here.

Source: vLLM's `vllm serve --help`, `vllm/config/lora.py` (ranks) and `vllm/lora/peft_helper.py`
(what an adapter may have), as of 0.27.
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
from lora_sft.file_names import ADAPTER_CONFIG_FILE, CHAT_TEMPLATE_FILE
from lora_sft.serve.speaker import Target

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vLLM applies plain matrices: fields of PEFT's LoraConfig, with the value of a plain adapter.
PLAIN_LORA: tuple[tuple[str, Any], ...] = (
    ("use_dora", False),
    ("bias", "none"),
    ("modules_to_save", None),
    ("rank_pattern", {}),
    ("alpha_pattern", {}),
    ("target_parameters", None),
    ("trainable_token_indices", None),
)
API_KEY_VARIABLE = "VLLM_API_KEY"


def has_vllm() -> bool:
    """Whether vLLM is installed beside this package."""
    return importlib.util.find_spec("vllm") is not None


def make_vllm_command(target: Target, host: str, port: int) -> list[str]:
    """`vllm serve ...` for a target.

    Raises: CapabilityError for an adapter that vLLM cannot serve.
    """
    where = ["--host", host, "--port", str(port)]
    if target.origin is None:
        return ["vllm", "serve", str(target.folder), "--served-model-name", target.name, *where]
    folder, origin = str(target.folder), target.origin
    rank = find_rank(target)
    base = origin.model_name_or_path
    return [
        *("vllm", "serve", base, "--served-model-name", f"{target.name}-base"),
        *("--enable-lora", "--max-lora-rank", str(rank)),
        *("--lora-modules", f"{target.name}={folder}"),
        *("--tokenizer", folder, "--generation-config", folder),
        *_describe_base(target, origin),
        *where,
    ]


def find_rank(target: Target) -> int:
    """The smallest of vLLM's rank limits that holds the adapter.

    Raises: CapabilityError where it has more than plain LoRA matrices.
    """
    config = json.loads((target.folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    more = [name for name, plain in PLAIN_LORA if config.get(name) not in (plain, None)]
    rank = next((limit for limit in RANKS if limit >= config["r"]), None)
    if not more and rank is not None:
        return rank
    raise CapabilityError(
        f"vLLM cannot serve this adapter beside its base: {', '.join(more) or 'r'} is set to "
        f"{_list_values(config, more or ['r'])}",
        str(target.folder),
        f"merge it and serve the folder: lora-sft merge {target.folder} OUT",
    )


def _list_values(config: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(json.dumps(config[name]) for name in names)


def _describe_base(target: Target, origin: AdapterOrigin) -> list[str]:
    """The base as the adapter was trained on it; vLLM packs NF4 with double quantisation itself."""
    template = target.folder / CHAT_TEMPLATE_FILE
    stored = dict(origin.quantization or {})
    return [
        *(["--chat-template", str(template)] if template.exists() else []),
        *(["--dtype", origin.dtype] if origin.dtype else []),
        *(["--revision", origin.revision] if origin.revision else []),
        *(["--trust-remote-code"] if origin.trust_remote_code else []),
        *(["--quantization", "bitsandbytes"] if stored.get("load_in_4bit") else []),
    ]


def become_vllm(command: list[str], api_key: str | None) -> None:
    """Replace this process by vLLM's, so that signals and the exit code are its own.

    The key travels in the environment, where a list of processes does not show it.
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
