"""Plan a merge: what is merged onto what, which tensors change, and is there room for it."""

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
from lora_sft.recipe.schema import QUANTIZATION_PRESETS

Onto = Literal["dequantized", "original"]


Verify = Literal["auto", "logits", "tensors", "none"]


BYTES_A_QUANTISED_NUMBER = 8  # as stored, in training's dtype, its codes, and dequantised


SLACK_BYTES = 64 << 20  # tokenizer, configs and card beside the weights


@dataclass(frozen=True)
class MergePlan:
    """What is merged onto what, and how; no weight was looked at yet.

    `is_onto_asked`: `onto` is a person's choice and not the default. `run`: the run directory that
    the adapter comes from, whose validation rows can be prompts. `owner`: that run where
    it merges by itself, and may replace what it merged before.
    """

    adapters: tuple[Path, ...]
    output: Path
    origin: AdapterOrigin
    onto: Onto
    is_onto_asked: bool
    dtype: str
    verify: Verify
    allow_other_base: bool = False
    run: Path | None = None
    owner: Owner | None = None

    @property
    def adapter(self) -> Path:
        """The first adapter, whose tokenizer goes with the output."""
        return self.adapters[0]


@dataclass(frozen=True)
class PreparedMerge:
    """All that the headers tell: everything that can be wrong with the input is known."""

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
) -> MergePlan:
    """Decide what is merged onto what; `adapter` may be a run directory.

    `others` are merged in the same pass, each with its own scale. `trained_on` says how the base
    was quantised in training (`nf4`, `int8`), for adapters that do not record it.

    Raises: ExportError where the adapter, its base, the choice or the output cannot be.
    """
    output = output.resolve()  # of a link: what it points to, so that all stays on that disk
    folders = tuple(find_adapter_folder(each) for each in (adapter, *others))
    origin = read_origin(folders[0])
    if base is not None:
        origin = replace(origin, model_name_or_path=base, revision=None)
    if trained_on is not None and origin.quantization is None:
        fields = QUANTIZATION_PRESETS[trained_on]
        origin = replace(origin, quantization=fields, dtype=origin.dtype or "bfloat16")
    if not origin.model_name_or_path:
        raise ExportError(
            "the adapter does not say which base it belongs to",
            str(folders[0]),
            "add --base PATH",
        )
    check_output_is_free(output, owner)
    run = adapter if folders[0] != adapter else None
    return MergePlan(
        adapters=folders,
        output=output,
        origin=origin,
        onto=onto or ("dequantized" if origin.quantization else "original"),
        is_onto_asked=onto is not None,
        dtype=dtype or "",
        verify=verify,
        allow_other_base=allow_other_base,
        run=run,
        owner=owner,
    )


def find_adapter_folder(path: Path) -> Path:
    """The adapter folder of a run directory, or the folder itself.

    Raises: ExportError where there is nothing.
    """
    if not path.exists():
        raise ExportError("no such folder", str(path), "give an adapter folder or a run")
    return path / "adapter" if (path / "adapter").is_dir() else path


def prepare_merge(plan: MergePlan) -> tuple[MergePlan, PreparedMerge]:
    """Read all headers and plan every tensor; the plan comes back with its open choices made.

    Raises: ExportError where adapter and base do not belong together; ModelError where there is
    no base; CapabilityError where disk or memory are short.
    """
    origin = plan.origin
    adapters = tuple(read_adapter(folder) for folder in plan.adapters)
    base = read_base_checkpoint(origin.model_name_or_path, origin.revision)
    plan = _settle(plan, base)
    if not plan.allow_other_base:
        for folder in plan.adapters:
            recorded = read_origin(folder).base_fingerprint
            if recorded is not None:
                check_fingerprint(base, recorded, str(folder))
    trained = getattr(torch, origin.dtype or plan.dtype)
    trust = origin.trust_remote_code
    form = choose_base_form(base, plan.onto, origin.quantization, trained, trust_remote_code=trust)
    weights = make_weight_plan(form.base, adapters, trust_remote_code=trust)
    files = lay_out_files(weights, form, getattr(torch, plan.dtype))
    prepared = PreparedMerge(base, adapters, form, weights, files)
    check_free_disk(plan.output, prepared.num_bytes + SLACK_BYTES)
    check_free_memory(estimate_memory(form))
    return plan, prepared


def estimate_memory(form: BaseForm) -> int:
    """Bytes beyond the libraries' own: blocks, and one tensor that is quantised as a whole."""
    whole = [t.num_elements for t in form.base.tensors.values() if not form.is_as_stored(t)]
    return SLACK_BYTES + BYTES_A_QUANTISED_NUMBER * max(whole, default=0)


def _settle(plan: MergePlan, base: BaseCheckpoint) -> MergePlan:
    """The choices that need the base's config.

    Raises: ExportError for --onto where only the other one is there.
    """
    origin = plan.origin
    onto = plan.onto
    if base.stored_quantization is not None:
        if onto == "original" and plan.is_onto_asked:
            raise ExportError(
                "the base is stored quantised: there is no original to merge onto",
                f"{base.location}  --onto original",
                "drop --onto, or name the unquantised base with --base PATH",
            )
        onto = "dequantized"
    elif onto == "dequantized" and not origin.quantization:
        raise ExportError(
            "the adapter was not trained on a quantised base (as far as its folder says)",
            f"{plan.adapter}  --onto dequantized",
            "write --trained-on nf4 (or int8) where you know it, else drop --onto",
        )
    stored = base.config.get("dtype") or base.config.get("torch_dtype")
    dtype = plan.dtype or origin.export_dtype or origin.dtype or stored
    if dtype not in ("bfloat16", "float16", "float32"):
        dtype = "bfloat16" if base.stored_quantization else base.main_dtype_name
    return replace(plan, onto=onto, dtype=dtype)


def describe_merge_plan(plan: MergePlan) -> dict[str, Any]:
    """The plan as the JSON document of `merge --dry-run`."""
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
