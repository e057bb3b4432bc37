"""Read a saved LoRA adapter: what its tensors are, by module, and with what scale they count.

PEFT's file format (peft 0.21, `get_peft_model_state_dict`): `base_model.model.` + the module's name
+ a suffix that says what the tensor is. Nothing is loaded but names and shapes. PEFT itself is not
imported: it costs as much start-up as a small merge takes, and a test of every kind compares with
PEFT's own forward pass.

What changes the base in a way that the saved tensors alone do not tell is refused here by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lora_sft.model_files.stored_tensors import StoredTensor, read_header

PREFIX = "base_model.model."
WRAPPER = ".base_layer"

# Longest first: the first that a name ends in says what the tensor is.
SUFFIXES = {
    ".token_adapter.trainable_tokens_delta": "token_rows",
    ".token_adapter.base_layer.weight": "base_weight",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "b_bias",
    ".base_layer.weight": "base_weight",
    ".base_layer.bias": "base_bias",
    ".original_module.weight": "base_weight",
    ".modules_to_save.weight": "trained_weight",
}
# Initialisations that subtract from the base when the adapter is attached: the saved A and B are
# then no longer relative to the base on disk (peft 0.21 `pissa_init`, `olora_init`, ...).
BASE_CHANGING_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")
UNMERGEABLE_FIELDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


@dataclass(frozen=True)
class ModuleTensors:
    """The saved tensors of one module by what they are; `depth` counts the wrappers inside.

    PEFT wraps a module once for each of its parameters that an adapter targets; the innermost
    wrapper belongs to the first parameter.
    """

    module: str
    depth: int
    roles: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class SavedAdapter:
    """One adapter folder: its config, its tensors by module, and those that stand for themselves.

    `plain`: tensors under a parameter's own name (modules_to_save, biases, resized embeddings).
    """

    folder: Path
    config: Mapping[str, Any]
    modules: tuple[ModuleTensors, ...]
    plain: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def tensors(self) -> Iterator[StoredTensor]:
        yield from self.plain.values()
        for module in self.modules:
            yield from module.roles.values()

    def is_trained_module(self, parameter: str) -> bool:
        """Whether `modules_to_save` names the module of this parameter."""
        module = parameter.rpartition(".")[0]
        names = self.config.get("modules_to_save") or ()
        return any(module == name or module.endswith(f".{name}") for name in names)

    def find_rank(self, key: str) -> int:
        """The rank of the module or parameter `key`, by `rank_pattern` (peft `get_pattern_key`)."""
        return int(_find_in_pattern(self.config.get("rank_pattern"), key, self.config["r"]))

    def find_scale(self, key: str) -> float:
        """What B A is multiplied with: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.

        Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732.
        """
        rank = self.find_rank(key)
        alpha = _find_in_pattern(
            self.config.get("alpha_pattern"), key, self.config.get("lora_alpha", 8)
        )
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)


def _find_in_pattern(pattern: Mapping[str, Any] | None, key: str, default: Any) -> Any:
    for name, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({name})$", key):
            return value
    return default


def read_adapter(folder: Path) -> SavedAdapter:
    """The adapter in `folder`.

    Raises: ExportError where its config asks for what a merge cannot do, naming the field, or
    where a file is missing or broken.
    """
    config = read_adapter_config(folder)
    _check_mergeable(config, folder)
    weights = folder / ADAPTER_WEIGHTS_FILE
    if not weights.exists():
        raise ExportError(
            f"the adapter's weights are missing ({ADAPTER_WEIGHTS_FILE})",
            str(folder),
            "give the folder of a PEFT adapter; pickled adapter_model.bin files are not loaded",
        )
    modules: dict[tuple[str, int], dict[str, StoredTensor]] = {}
    plain = {}
    for tensor in read_header(weights).values():
        name = tensor.name.removeprefix(PREFIX)
        found = next((end for end in SUFFIXES if name.endswith(end)), None)
        if found is None:
            plain[name] = tensor
            continue
        path = name.removesuffix(found)
        module, depth = path.replace(WRAPPER, ""), path.count(WRAPPER)
        modules.setdefault((module, depth), {})[SUFFIXES[found]] = tensor
    if not modules and not plain:
        raise ExportError(
            "the adapter holds no tensors", str(weights), "save it again, or give another adapter"
        )
    found_modules = tuple(ModuleTensors(*key, roles) for key, roles in modules.items())
    return SavedAdapter(folder, config, found_modules, plain)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a folder.

    Raises: ExportError where the folder is no adapter.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ExportError(
            f"no adapter here: {ADAPTER_CONFIG_FILE} is missing or not JSON",
            str(folder),
            "give a run directory, its adapter/ folder, or a PEFT adapter folder",
        ) from error
    assert isinstance(config, dict)
    return config


def _check_mergeable(config: Mapping[str, Any], folder: Path) -> None:
    where = str(folder / ADAPTER_CONFIG_FILE)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ExportError(
            f"{kind} adapters are not merged here, only LORA",
            f"{where}  peft_type",
            "use PEFT's merge_and_unload",
        )
    for name in UNMERGEABLE_FIELDS:
        if config.get(name):
            raise ExportError(
                f"an adapter with {name} cannot be merged into weights",
                f"{where}  {name}",
                "serve it as an adapter",
            )
    how = config.get("init_lora_weights")
    if isinstance(how, str) and how.lower().startswith(BASE_CHANGING_INITIALISATIONS):
        raise ExportError(
            f'init_lora_weights: "{how}" changed the base itself when training began',
            f"{where}  init_lora_weights",
            "convert it to plain LoRA first: PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion",
        )
