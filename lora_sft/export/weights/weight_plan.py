"""From adapters and the base's headers to a plan: how every tensor of the output comes to be.

A pure value, made before anything is written. Every tensor of every adapter is used exactly once,
or the merge is refused and names it: an adapter of a two-layer model fits a three-layer one as far
as PEFT says, and a tensor that matches nothing is dropped there with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.export.weights.adapter_reading import SavedAdapter
from lora_sft.export.weights.embedding_ties import settle_embeddings
from lora_sft.export.weights.parameter_names import ParameterNames
from lora_sft.export.weights.placing import FITTING_BASE, Placer
from lora_sft.export.weights.weight_changes import Weight
from lora_sft.model_files.base_checkpoint import BaseCheckpoint
from lora_sft.model_files.stored_tensors import StoredTensor


@dataclass(frozen=True)
class WeightPlan:
    """Output tensor -> how it comes to be; what the config must say of it.

    `weights` follow the base's own names and order, new ones last.
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
    """Place every adapter tensor.

    Raises: ExportError, naming the tensor, where one matches nothing or has another shape, where
    two adapters replace the same one, or where the base has modules that the adapter should know.
    """
    num_tokens = _find_num_tokens(adapters)
    names = ParameterNames(base, trust_remote_code=trust_remote_code, num_tokens=num_tokens)
    placer = Placer(names)
    for adapter in adapters:
        _check_missing_modules(base, adapter)
        placer.place(adapter)
    config = settle_embeddings(placer) if placer.may_touch_embeddings else {}
    weights = placer.collect()
    _check_all_used(weights, placer.copies, adapters)
    total = sum(1 for adapter in adapters for _ in adapter.tensors)
    return WeightPlan(weights, config, total)


def _check_all_used(
    weights: Mapping[str, Weight], copies: Set[StoredTensor], adapters: Sequence[SavedAdapter]
) -> None:
    """Raises: ExportError, naming it, where a tensor of an adapter has no part in any weight."""
    used = set(copies)
    for weight in weights.values():
        used |= weight.tensors
    for adapter in adapters:
        for tensor in adapter.tensors:
            if tensor not in used:
                raise ExportError(
                    f"{tensor.name} has no part in the merge: its kind is not known here",
                    str(tensor.file),
                    "use PEFT's merge_and_unload",
                )


def _find_num_tokens(adapters: Sequence[SavedAdapter]) -> int | None:
    """Rows of a whole embedding or head that came with an adapter, where there is one."""
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
    """Raises: ExportError where the base has a layer more than the adapter was trained on.

    A module that the adapter's targets name and for which it holds nothing, while it holds the
    same module of other layers, was not there in training.
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
                f"the adapter does not fit the base: it targets {name}, which the base has, and "
                "holds no tensor for it",
                str(adapter.folder),
                FITTING_BASE,
            )


def _list_modules(base: BaseCheckpoint) -> Iterator[str]:
    for name in base.tensors:
        if name.endswith(".weight"):
            yield name.removesuffix(".weight")
