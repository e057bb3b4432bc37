"""Plan a merge: choose its inputs, read all headers, and check disk space and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lora_sft.errors import ExportError
from lora_sft.export.adapter_origin import AdapterOrigin, read_origin
from lora_sft.export.staging import (
    Owner,
    check_output_is_free,
)
from lora_sft.export.weights.adapter_reading import SavedAdapter, read_adapter
from lora_sft.export.weights.base_form import BaseForm, choose_base_form
from lora_sft.export.weights.shard_writing import OutputFile, lay_out_files
from lora_sft.export.weights.weight_plan import WeightPlan, make_weight_plan
from lora_sft.machine_room import check_free_disk, check_free_memory
from lora_sft.model_files.base_checkpoint import BaseCheckpoint, read_base_checkpoint
from lora_sft.model_files.fingerprint import check_fingerprint
from lora_sft.model_files.remote_code import check_remote_code
from lora_sft.recipe.schema import QUANTIZATION_PRESETS

Onto = Literal["dequantized", "original"]
Verify = Literal["auto", "logits", "tensors", "none"]

# The stored value, its copy in the dtype of training, its code, and the dequantised value.
BYTES_PER_QUANTISED_NUMBER = 8
# On disk: tokenizer, configs and model card beside the weights. In memory: the blocks.
SLACK_BYTES = 64 << 20


@dataclass(frozen=True)
class MergePlan:
    """The inputs and the options of a merge. No weights have been read yet.

    Attributes:
        adapters: The adapter folders.
        output: The folder to write.
        origin: The base model, and how the first adapter was trained on it.
        onto: The form of the base model that the adapters are merged onto.
        is_onto_explicit: Whether the user chose `onto`.
        dtype: The dtype of the merged weights; empty until `prepare_merge` chooses it.
        verify: The method of the verification.
        allow_other_base: Merge even if the base model's fingerprint differs from the recorded one.
        run: The run directory of the first adapter, or None. Its validation rows become prompts.
        owner: The run that merges in its own `export`, or None. It may replace its earlier merge.
    """

    adapters: tuple[Path, ...]
    output: Path
    origin: AdapterOrigin
    onto: Onto
    is_onto_explicit: bool
    dtype: str
    verify: Verify
    allow_other_base: bool = False
    run: Path | None = None
    owner: Owner | None = None
    trust_remote_code: bool = False

    @property
    def adapter(self) -> Path:
        """The first adapter. Its tokenizer is copied to the output."""
        return self.adapters[0]


@dataclass(frozen=True)
class PreparedMerge:
    """A merge whose headers are read and checked and whose tensors are planned."""

    base: BaseCheckpoint
    adapters: tuple[SavedAdapter, ...]
    form: BaseForm
    weights: WeightPlan
    files: tuple[OutputFile, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def make_merge_plan(
    adapter: Path,
    output: Path,
    *,
    base: str | None = None,
    onto: Onto | None = None,
    dtype: str | None = None,
    verify: Verify = "auto",
    others: Sequence[Path] = (),
    trained_on: str | None = None,
    allow_other_base: bool = False,
    owner: Owner | None = None,
    trust_remote_code: bool = False,
) -> MergePlan:
    """Find the adapters and the base model, and choose the form of the base model.

    Args:
        adapter: An adapter folder or a run directory.
        output: The folder to write.
        base: The base model's folder or hub id; None: the recorded one.
        onto: The form of the base model; None: `dequantized` if it was quantised in training, else
            `original`.
        dtype: The dtype of the merged weights; None: `prepare_merge` chooses it.
        verify: The method of the verification.
        others: More adapters for the same merge, each with its own scale.
        trained_on: How the base model was quantised in training (`nf4`, `int8`), for an adapter
            that does not record it.
        allow_other_base: Merge even if the base model's fingerprint differs from the recorded one.
        owner: The run that merges in its own `export`. It may replace its earlier merge.
        trust_remote_code: Run the Python files of the base model. Nothing that the adapter
            records can set this.

    Raises: ExportError if there is no adapter, its base model is unknown, or `output` exists.
    """
    output = output.resolve()  # follow a link: the hidden folder must be on the output's disk
    folders = tuple(find_adapter_folder(each) for each in (adapter, *others))
    origin = read_origin(folders[0])
    if base is not None:
        origin = replace(origin, model_name_or_path=base, revision=None)
    if trained_on is not None and origin.quantization is None:
        fields = QUANTIZATION_PRESETS[trained_on]
        origin = replace(origin, quantization=fields, dtype=origin.dtype or "bfloat16")
    if not origin.model_name_or_path:
        raise ExportError(
            "the adapter does not record its base model",
            str(folders[0]),
            "add --base PATH",
        )
    if trust_remote_code:
        check_remote_code(origin.model_name_or_path, origin.revision)
    check_output_is_free(output, owner)
    run = adapter if folders[0] != adapter else None
    return MergePlan(
        adapters=folders,
        output=output,
        origin=origin,
        onto=onto or ("dequantized" if origin.quantization else "original"),
        is_onto_explicit=onto is not None,
        dtype=dtype or "",
        verify=verify,
        allow_other_base=allow_other_base,
        run=run,
        owner=owner,
        trust_remote_code=trust_remote_code,
    )


def find_adapter_folder(path: Path) -> Path:
    """Return the adapter folder of a run directory, or `path` if it is not a run directory.

    Raises: ExportError if `path` does not exist.
    """
    if not path.exists():
        raise ExportError("no such folder", str(path), "give an adapter folder or a run directory")
    return path / "adapter" if (path / "adapter").is_dir() else path


def prepare_merge(plan: MergePlan) -> tuple[MergePlan, PreparedMerge]:
    """Read all headers, plan every tensor, and check disk space and memory.

    Returns: `plan` with its final form and dtype, and the prepared merge.

    Raises:
        ExportError: If the adapters do not fit the base model.
        ModelError: If the base model is not found.
        CapabilityError: If there is too little disk space or memory.
    """
    origin = plan.origin
    adapters = tuple(read_adapter(folder) for folder in plan.adapters)
    base = read_base_checkpoint(origin.model_name_or_path, origin.revision)
    plan = _choose_form_and_dtype(plan, base)
    if not plan.allow_other_base:
        for folder in plan.adapters:
            recorded = read_origin(folder).base_fingerprint
            if recorded is not None:
                check_fingerprint(base, recorded, str(folder))
    trained = getattr(torch, origin.dtype or plan.dtype)
    trust = plan.trust_remote_code
    form = choose_base_form(base, plan.onto, origin.quantization, trained, trust_remote_code=trust)
    weights = make_weight_plan(form.base, adapters, trust_remote_code=trust)
    files = lay_out_files(weights, form, getattr(torch, plan.dtype))
    prepared = PreparedMerge(base, adapters, form, weights, files)
    check_free_disk(plan.output, prepared.num_bytes + SLACK_BYTES)
    check_free_memory(estimate_memory(form))
    return plan, prepared


def estimate_memory(form: BaseForm) -> int:
    """Return the memory in bytes that a merge needs beside the memory of the libraries.

    A tensor that is not used as stored is completely in memory. All others are read in blocks.
    """
    whole = [t.num_elements for t in form.base.tensors.values() if not form.is_as_stored(t)]
    return SLACK_BYTES + BYTES_PER_QUANTISED_NUMBER * max(whole, default=0)


def _choose_form_and_dtype(plan: MergePlan, base: BaseCheckpoint) -> MergePlan:
    """Choose the form and the dtype, which depend on the base model's config.

    Raises: ExportError if the base model does not have the form that --onto names.
    """
    origin = plan.origin
    onto = plan.onto
    if base.stored_quantization is not None:
        if onto == "original" and plan.is_onto_explicit:
            raise ExportError(
                "the base model is stored quantised, so it has no original form",
                f"{base.location}  --onto original",
                "remove --onto, or give the unquantised base model with --base PATH",
            )
        onto = "dequantized"
    elif onto == "dequantized" and not origin.quantization:
        raise ExportError(
            "the adapter does not record that its base model was quantised in training",
            f"{plan.adapter}  --onto dequantized",
            "if it was quantised, add --trained-on nf4 (or int8); if not, remove --onto",
        )
    stored = base.config.get("dtype") or base.config.get("torch_dtype")
    dtype = plan.dtype or origin.export_dtype or origin.dtype or stored
    if dtype not in ("bfloat16", "float16", "float32"):
        dtype = "bfloat16" if base.stored_quantization else base.main_dtype_name
    return replace(plan, onto=onto, dtype=dtype)


def describe_merge_plan(plan: MergePlan) -> dict[str, Any]:
    """Return the JSON document of `merge --dry-run`. The headers are read, nothing is written."""
    plan, prepared = prepare_merge(plan)
    changed = [name for name, weight in prepared.weights.weights.items() if weight.is_changed]
    return {
        "output": str(plan.output),
        "base": plan.origin.model_name_or_path,
        "onto": plan.onto,
        "dtype": plan.dtype,
        "adapters": [str(folder) for folder in plan.adapters],
        "adapter_tensors_total": prepared.weights.adapter_tensors,
        "output_bytes": prepared.num_bytes,
        "config_changes": dict(prepared.weights.config_changes),
        "tensors_merged": len(changed),
        "merged": changed,
    }
