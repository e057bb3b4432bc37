"""Load and run the models whose answers are compared: whole if they are small, else by layer.

A large model keeps every weight on disk (transformers' `device_map="disk"`) and reads it when its
layer runs. The memory then depends on the largest tensor and not on the model. All prompts run in
one batch that is padded on the right. In a causal model, padding does not change earlier tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lora_sft.export.proof.verification import compute_logits
from lora_sft.export.weights.shard_writing import ShardWriter, lay_out_files
from lora_sft.export.weights.weight_changes import Weight
from lora_sft.export.weights.weight_plan import WeightPlan
from lora_sft.file_names import MODEL_CONFIG_FILE
from lora_sft.machine_room import find_free_memory
from lora_sft.model.adapter import attach_adapters, attach_adapters_to_layers
from lora_sft.model.base_model import CausalModel, load_base_model, load_in_float32, parse_dtype
from lora_sft.model.quantization import dequantize, find_quantizing_device, is_quantized
from lora_sft.recipe import ModelSection
from lora_sft.run_directory import write_json

if TYPE_CHECKING:
    from lora_sft.export.merge_plan import MergePlan, PreparedMerge

Logits = list[torch.Tensor]
Ids = Sequence[Sequence[int]]

MEMORY_SHARE = 0.8  # of the free memory
BYTES_PER_PARAMETER = 5.5  # float32, and temporary memory of loading and of a forward pass
WHOLE_MODEL_BYTES = 2 << 30  # a model up to this size is loaded as a whole
LAYERED_BYTES_PER_ELEMENT = 10  # of the largest tensor: as stored, in float32, and in use
# A larger model needs minutes for a forward pass on a CPU. `--verify logits` runs it nevertheless.
MOST_PARAMETERS_IN_AUTO = 10_000_000_000


class AnsweringModels(Protocol):
    """Loads the base model with the adapters, or the merged folder, and computes their logits."""

    is_whole: bool

    def load_adapted(self, onto: str) -> CausalModel:
        """Load a form of the base model with the adapters attached, to compute in float32."""

    def load_folder(self, folder: Path) -> CausalModel:
        """Load a model folder with plain transformers, to compute in float32."""

    def answer(self, model: CausalModel, ids: Ids) -> Logits:
        """Return the float32 logits [T, V] of each prompt."""


class WholeModels:
    """Loads one whole model at a time into memory."""

    is_whole = True

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan

    def load_adapted(self, onto: str) -> CausalModel:
        origin, plan, cpu = self._plan.origin, self._plan, torch.device("cpu")
        trained = origin.dtype or plan.dtype
        if onto == "dequantized" and origin.quantization:
            section = make_base_section(plan, trained)
            place = find_quantizing_device()  # the merge quantises on the same device
            base = load_base_model(section, quantization=origin.quantization, device=place)
            dequantized: Any = dequantize(base, parse_dtype(trained))
            base = dequantized.to(cpu).float()
        else:
            base = load_base_model(make_base_section(plan, "float32"), device=cpu)
            if is_quantized(base):  # stored quantised, so it has only the dequantised form
                base = dequantize(base, parse_dtype(trained)).float()
        return attach_adapters(base, plan.adapters).float()

    def load_folder(self, folder: Path) -> CausalModel:
        trust = self._plan.trust_remote_code
        return load_in_float32(folder, trust_remote_code=trust)

    def answer(self, model: CausalModel, ids: Ids) -> Logits:
        return compute_logits(model, ids)


class LayeredModels:
    """Runs models layer by layer, with the weights on disk.

    A dequantised base model does not exist on disk, so it is first written to `workspace`.
    """

    is_whole = False

    def __init__(self, plan: MergePlan, prepared: PreparedMerge, workspace: Path) -> None:
        self._plan = plan
        self._prepared = prepared
        self._workspace = workspace

    def load_adapted(self, onto: str) -> CausalModel:
        location: str | Path = self._plan.origin.model_name_or_path
        if onto == "dequantized":
            location = self._write_base_form()
        return attach_adapters_to_layers(self._load(location), self._plan.adapters)

    def _write_base_form(self) -> Path:
        folder = self._workspace / "base"
        folder.mkdir()
        form = self._prepared.form
        weights = WeightPlan({name: Weight(each) for name, each in form.base.tensors.items()})
        dtype = parse_dtype(self._plan.origin.dtype or self._plan.dtype)
        ShardWriter(folder, form, lambda _: None).write(lay_out_files(weights, form, dtype))
        config = dict(self._prepared.base.config)
        config.pop("quantization_config", None)
        write_json(folder / MODEL_CONFIG_FILE, config)
        return folder

    def load_folder(self, folder: Path) -> CausalModel:
        return self._load(folder)

    def _load(self, location: str | Path) -> CausalModel:
        local = Path(location).is_dir()
        return load_in_float32(
            location,
            revision=None if local else self._plan.origin.revision,
            trust_remote_code=self._plan.trust_remote_code,
            offload_folder=self._workspace / "offloaded",
        )

    @torch.inference_mode()
    def answer(self, model: CausalModel, ids: Ids) -> Logits:
        longest = max(map(len, ids))
        filled_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
        logits_BTV = model(input_ids=filled_BT, use_cache=False).logits
        # clone: a slice would keep the logits of the padding in memory
        return [
            logits_TV[: len(row)].float().clone()
            for logits_TV, row in zip(logits_BTV, ids, strict=True)
        ]


def make_base_section(plan: MergePlan, dtype: Any) -> ModelSection:
    """Return a recipe section that loads the base model of the plan."""
    origin = plan.origin
    return ModelSection(
        model_name_or_path=origin.model_name_or_path,
        revision=origin.revision,
        dtype=dtype,
        trust_remote_code=plan.trust_remote_code,
    )


def choose_models(
    plan: MergePlan, prepared: PreparedMerge, workspace: Path
) -> AnsweringModels | str:
    """Return an object that runs the models, or a text that says why they cannot run."""
    num_parameters = prepared.base.num_parameters
    needed, free = BYTES_PER_PARAMETER * num_parameters, MEMORY_SHARE * find_free_memory()
    if needed <= min(free, WHOLE_MODEL_BYTES):
        return WholeModels(plan)
    reason = find_reason_for_whole_model(prepared)
    if reason:
        if needed <= free:
            return WholeModels(plan)
        return (
            f"{reason} needs the whole model in memory: {needed / 1e9:.1f} GB needed, "
            f"{free / 1e9:.1f} GB free"
        )
    if plan.verify == "auto" and num_parameters > MOST_PARAMETERS_IN_AUTO:
        return (
            f"a forward pass of {num_parameters / 1e9:.0f} B parameters takes long; "
            "--verify logits runs it layer by layer"
        )
    largest = max(tensor.num_elements for tensor in prepared.form.base.tensors.values())
    if LAYERED_BYTES_PER_ELEMENT * largest > free:
        return (
            f"the largest tensor has {largest:,} numbers, which need more than the "
            f"{free / 1e9:.1f} GB of free memory"
        )
    return LayeredModels(plan, prepared, workspace)


def find_reason_for_whole_model(prepared: PreparedMerge) -> str:
    """Return what in the adapters or the base model needs the whole model; empty if nothing does.

    Such an adapter or base model reads a layer's weight directly. This fails if the weight is on
    disk until its layer runs.
    """
    if prepared.base.stored_quantization is not None:
        return "a base model that is stored quantised"
    for adapter in prepared.adapters:
        if adapter.config.get("target_parameters"):
            return "an adapter of stacked experts"
        for module in adapter.modules:
            others = set(module.roles) - {"a", "b", "b_bias", "embedding_a", "embedding_b"}
            if others - {"base_weight"}:
                return f"an adapter with {sorted(others)[0]}"
        if adapter.whole_parameters or prepared.weights.config_changes.get("vocab_size"):
            return "an adapter with whole tensors"
    return ""
