"""The models whose answers are compared: whole in memory where they are small, else layer by layer.

Layer by layer means that every weight stays on disk (transformers' `device_map="disk"`) and is read
when its layer is reached, so that memory is bounded by the largest tensor and not by the model.
All prompts then go through in one batch, filled up on the right: in a causal model nothing of that
reaches the tokens before it.
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

MEMORY_SHARE = 0.8  # of what is free
BYTES_A_PARAMETER = 5.5  # float32, and what loading and a forward pass hold for a moment
WHOLE_BYTES = 2 << 30  # a model that takes no more is simply loaded
LAYERED_BYTES_AN_ELEMENT = 10  # of the largest tensor: as stored, in float32, and its use
# A forward pass on a CPU takes minutes beyond; `--verify logits` makes it all the same.
MOST_PARAMETERS_UNASKED = 10_000_000_000


class AnsweringModels(Protocol):
    """Base + adapters, and the merged folder, ready to answer."""

    is_whole: bool

    def load_adapted(self, onto: str) -> CausalModel:
        """A form of the base with the adapters on it, computing in float32."""

    def load_folder(self, folder: Path) -> CausalModel:
        """A model folder as anybody would load it, computing in float32."""

    def answer(self, model: CausalModel, ids: Ids) -> Logits:
        """Float32 logits [T, V] of each prompt."""


class WholeModels:
    """In memory, one at a time."""

    is_whole = True

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan

    def load_adapted(self, onto: str) -> CausalModel:
        origin, plan, cpu = self._plan.origin, self._plan, torch.device("cpu")
        trained = origin.dtype or plan.dtype
        if onto == "dequantized" and origin.quantization:
            section = make_base_section(plan, trained)
            place = find_quantizing_device()  # where the merge makes its codes too
            base = load_base_model(section, quantization=origin.quantization, device=place)
            dequantized: Any = dequantize(base, parse_dtype(trained))
            base = dequantized.to(cpu).float()
        else:
            base = load_base_model(make_base_section(plan, "float32"), device=cpu)
            if is_quantized(base):  # stored so: nothing else than its dequantised form is there
                base = dequantize(base, parse_dtype(trained)).float()
        return attach_adapters(base, plan.adapters).float()

    def load_folder(self, folder: Path) -> CausalModel:
        trust = self._plan.origin.trust_remote_code
        return load_in_float32(folder, trust_remote_code=trust)

    def answer(self, model: CausalModel, ids: Ids) -> Logits:
        return compute_logits(model, ids)


class LayeredModels:
    """On disk. `workspace` takes forms of the base that are not there as files."""

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
            trust_remote_code=self._plan.origin.trust_remote_code,
            offload_folder=self._workspace / "offloaded",
        )

    @torch.inference_mode()
    def answer(self, model: CausalModel, ids: Ids) -> Logits:
        longest = max(map(len, ids))
        filled_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
        logits_BTV = model(input_ids=filled_BT, use_cache=False).logits
        # copies: a slice would keep what was filled up in memory
        return [
            logits_TV[: len(row)].float().clone()
            for logits_TV, row in zip(logits_BTV, ids, strict=True)
        ]


def make_base_section(plan: MergePlan, dtype: Any) -> ModelSection:
    """The recipe section that loads the plan's base."""
    origin = plan.origin
    return ModelSection(
        model_name_or_path=origin.model_name_or_path,
        revision=origin.revision,
        dtype=dtype,
        trust_remote_code=origin.trust_remote_code,
    )


def choose_models(
    plan: MergePlan, prepared: PreparedMerge, workspace: Path
) -> AnsweringModels | str:
    """How the models are run here, or why they are not."""
    num_parameters = prepared.base.num_parameters
    needed, free = BYTES_A_PARAMETER * num_parameters, MEMORY_SHARE * find_free_memory()
    if needed <= min(free, WHOLE_BYTES):
        return WholeModels(plan)
    special = find_what_needs_whole_weights(prepared)
    if special:
        if needed <= free:
            return WholeModels(plan)
        return (
            f"{special} needs whole weights: {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free for it"
        )
    if plan.verify == "auto" and num_parameters > MOST_PARAMETERS_UNASKED:
        return (
            f"a forward pass of {num_parameters / 1e9:.0f} B parameters is long; "
            "--verify logits makes it, layer by layer"
        )
    largest = max(tensor.num_elements for tensor in prepared.form.base.tensors.values())
    if LAYERED_BYTES_AN_ELEMENT * largest > free:
        return f"the largest tensor has {largest:,} numbers, and {free / 1e9:.1f} GB are free"
    return LayeredModels(plan, prepared, workspace)


def find_what_needs_whole_weights(prepared: PreparedMerge) -> str:
    """What of the adapters or the base reads a layer's weight itself, or nothing."""
    if prepared.base.stored_quantization is not None:
        return "a base that is stored quantised"
    for adapter in prepared.adapters:
        if adapter.config.get("target_parameters"):
            return "an adapter of stacked experts"
        for module in adapter.modules:
            strange = set(module.roles) - {"a", "b", "b_bias", "embedding_a", "embedding_b"}
            if strange - {"base_weight"}:
                return f"an adapter with {sorted(strange)[0]}"
        if adapter.whole_parameters or prepared.weights.config_changes.get("vocab_size"):
            return "an adapter with whole tensors"
    return ""
