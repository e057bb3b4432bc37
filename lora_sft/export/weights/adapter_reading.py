"""Read a saved LoRA adapter: the module and the role of each tensor, and the scale of each module.

A tensor's name in PEFT's file format is `base_model.model.`, the module's name, and a suffix for
the role (peft 0.21, `get_peft_model_state_dict`). Only names and shapes are read here. PEFT is not
imported, because its import takes as long as a small merge. Tests compare every kind of adapter
with PEFT's own forward pass.

An adapter is refused if its tensors do not describe every change that it makes to the base model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lora_sft.model_files.adapter_config import PEFT_RANK, read_adapter_config
from lora_sft.model_files.module_patterns import check_saved_patterns
from lora_sft.model_files.stored_tensors import StoredTensor, read_header

PREFIX = "base_model.model."
WRAPPER_SUFFIX = ".base_layer"

# Suffix of a tensor's name -> its role. The first match decides, so longer suffixes are first.
ROLES_BY_SUFFIX = {
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
# These initialisations change the base model's weights when training begins. The saved A and B
# belong to the changed weights, not to those on disk (peft 0.21 `pissa_init`, `olora_init`, ...).
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
    """The saved tensors of one PEFT wrapper of a module.

    PEFT wraps a module once per parameter that the adapter targets. The innermost wrapper belongs
    to the first parameter.

    Attributes:
        module: The module's name.
        depth: The number of wrappers around this one.
        roles: Role of a tensor -> the tensor.
    """

    module: str
    depth: int
    roles: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class SavedAdapter:
    """The config and the tensors of one adapter folder.

    Attributes:
        modules: The tensors that belong to a PEFT wrapper.
        whole_parameters: Parameter name -> tensor that replaces the parameter (`modules_to_save`,
            biases, resized embeddings).
    """

    folder: Path
    config: Mapping[str, Any]
    modules: tuple[ModuleTensors, ...]
    whole_parameters: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def tensors(self) -> Iterator[StoredTensor]:
        yield from self.whole_parameters.values()
        for module in self.modules:
            yield from module.roles.values()

    def is_trained_module(self, parameter: str) -> bool:
        """Return whether `modules_to_save` names the module of this parameter."""
        module = parameter.rpartition(".")[0]
        names = self.config.get("modules_to_save") or ()
        return any(module == name or module.endswith(f".{name}") for name in names)

    def find_rank(self, key: str) -> int:
        """Return the rank of the module or parameter `key`, which `rank_pattern` may set.

        Source: peft `get_pattern_key`.
        """
        return int(
            _find_in_pattern(self.config.get("rank_pattern"), key, self.config.get("r", PEFT_RANK))
        )

    def find_scale(self, key: str) -> float:
        """Return the scale of B A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.

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
    """Read the config of an adapter and the header of its weights.

    Raises:
        ExportError: If a file is missing or broken, or if a field of the config makes a merge
            impossible.
        ModelError: If a pattern of the config needs too much time.
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
    whole_parameters = {}
    for tensor in read_header(weights).values():
        name = tensor.name.removeprefix(PREFIX)
        found = next((end for end in ROLES_BY_SUFFIX if name.endswith(end)), None)
        if found is None:
            whole_parameters[name] = tensor
            continue
        path = name.removesuffix(found)
        module, depth = path.replace(WRAPPER_SUFFIX, ""), path.count(WRAPPER_SUFFIX)
        modules.setdefault((module, depth), {})[ROLES_BY_SUFFIX[found]] = tensor
    if not modules and not whole_parameters:
        raise ExportError(
            "the adapter holds no tensors", str(weights), "save it again, or give another adapter"
        )
    check_saved_patterns(folder, config, _list_names(config, modules))
    found_modules = tuple(ModuleTensors(*key, roles) for key, roles in modules.items())
    return SavedAdapter(folder, config, found_modules, whole_parameters)


def _list_names(config: Mapping[str, Any], modules: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Yield the names that patterns are matched with: of adapted modules and their parameters."""
    parameters = {str(each).rpartition(".")[2] for each in config.get("target_parameters") or ()}
    for module, _ in modules:
        yield module
        yield from (f"{module}.{parameter}" for parameter in parameters)


def _check_mergeable(config: Mapping[str, Any], folder: Path) -> None:
    """Check that no field of an adapter's config makes a merge impossible.

    Raises: ExportError that names the field.
    """
    where = str(folder / ADAPTER_CONFIG_FILE)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ExportError(
            f"adapters of type {kind} cannot be merged, only LORA adapters",
            f"{where}  peft_type",
            "merge with PEFT's merge_and_unload",
        )
    for name in UNMERGEABLE_FIELDS:
        if config.get(name):
            raise ExportError(
                f"an adapter with {name} cannot be merged into weights",
                f"{where}  {name}",
                "serve the adapter without merging it",
            )
    how = config.get("init_lora_weights")
    if isinstance(how, str) and how.lower().startswith(BASE_CHANGING_INITIALISATIONS):
        raise ExportError(
            f'init_lora_weights: "{how}" changed the base model itself when training began',
            f"{where}  init_lora_weights",
            "first convert the adapter to plain LoRA: PEFT's save_pretrained does it with "
            "path_initial_model_for_weight_conversion",
        )
