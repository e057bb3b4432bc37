"""Plan how every tensor of the output is made from the base model and the adapters.

The plan is complete before anything is written. Every adapter tensor must have a place in it.
Otherwise the merge is refused, and the error names the tensor. PEFT is less strict: it drops a
tensor that matches nothing with a warning, and accepts an adapter of a two-layer model for a
three-layer model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.export.weights.adapter_reading import SavedAdapter
from lora_sft.export.weights.embedding_ties import plan_embeddings
from lora_sft.export.weights.parameter_names import ParameterNames
from lora_sft.export.weights.placing import FITTING_BASE, Placer
from lora_sft.export.weights.weight_changes import Weight
from lora_sft.model_files.base_checkpoint import BaseCheckpoint
from lora_sft.model_files.stored_tensors import StoredTensor


@dataclass(frozen=True)
class WeightPlan:
    """The tensors of the output, and the changes to the model config.

    Attributes:
        weights: Tensor name -> its source and changes. Names and order are those of the base model;
            new tensors are last.
        config_changes: The fields of config.json that change, with their new values.
        adapter_tensors: The number of tensors in the adapters.
    """

    weights: Mapping[str, Weight]
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    adapter_tensors: int = 0

    @property
    def num_changed(self) -> int:
        return sum(weight.is_changed for weight in self.weights.values())


def make_weight_plan(
    base: BaseCheckpoint, adapters: Sequence[SavedAdapter], *, trust_remote_code: bool = False
) -> WeightPlan:
    """Find a place for every adapter tensor, and return the plan.

    Raises:
        ExportError: If a tensor matches nothing or has a wrong shape, if two adapters replace the
            same tensor, or if the base model has layers for which an adapter has no tensors.
    """
    num_tokens = _find_num_tokens(adapters)
    names = ParameterNames(base, trust_remote_code=trust_remote_code, num_tokens=num_tokens)
    placer = Placer(names)
    for adapter in adapters:
        _check_missing_modules(base, adapter)
        placer.place(adapter)
    config = plan_embeddings(placer) if placer.may_change_embeddings else {}
    weights = placer.collect()
    _check_all_used(weights, placer.used_tensors, adapters)
    total = sum(1 for adapter in adapters for _ in adapter.tensors)
    return WeightPlan(weights, config, total)


def _check_all_used(
    weights: Mapping[str, Weight], used_tensors: Set[StoredTensor], adapters: Sequence[SavedAdapter]
) -> None:
    """Check that every adapter tensor is used.

    Raises: ExportError that names an unused tensor.
    """
    used = set(used_tensors)
    for weight in weights.values():
        used |= weight.tensors
    for adapter in adapters:
        for tensor in adapter.tensors:
            if tensor not in used:
                raise ExportError(
                    f"{tensor.name} cannot be merged: this kind of tensor is unknown",
                    str(tensor.file),
                    "merge with PEFT's merge_and_unload",
                )


def _find_num_tokens(adapters: Sequence[SavedAdapter]) -> int | None:
    """Return the number of rows of a whole embedding or output head in an adapter, or None."""
    rows = {
        tensor.shape[0]
        for adapter in adapters
        for tensor in adapter.tensors
        if re.search(r"(embed|wte|lm_head|word_emb)", tensor.name)
        and tensor.name.endswith(".weight")
        and ".lora_" not in tensor.name
        and len(tensor.shape) == 2
    }
    return max(rows) if rows else None


def _check_missing_modules(base: BaseCheckpoint, adapter: SavedAdapter) -> None:
    """Check that the base model has no more layers than the model that the adapter was trained on.

    If the adapter targets a module but only has tensors for this module in other layers, the module
    did not exist in training.

    Raises: ExportError that names the module.
    """
    config, targets = adapter.config, adapter.config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform"):
        return
    if config.get("exclude_modules") or config.get("target_parameters"):
        return
    known = {module.module for module in adapter.modules}
    shapes = {re.sub(r"\d+", "#", module) for module in known}
    for name in _list_modules(base):
        named = any(name == target or name.endswith(f".{target}") for target in targets)
        if named and name not in known and re.sub(r"\d+", "#", name) in shapes:
            raise ExportError(
                f"the adapter does not fit the base model: it targets {name} but has no tensor "
                "for it",
                str(adapter.folder),
                FITTING_BASE,
            )


def _list_modules(base: BaseCheckpoint) -> Iterator[str]:
    for name in base.tensors:
        if name.endswith(".weight"):
            yield name.removesuffix(".weight")
