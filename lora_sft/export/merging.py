"""Merge an adapter into its base and prove that the result answers the same.

The merge is computed in float32 (W + scale x B A, Hu et al. 2021, arXiv 2106.09685, section
4.1), rounded once to the dtype of the export, and verified by reloading the folder from disk.
A QLoRA adapter learned against the dequantised base, so that is the base it is merged onto by
default; merging into packed 4-bit weights and packing again loses most and is not offered.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from lora_sft.data.tokenizer import load_saved_tokenizer
from lora_sft.errors import ExportError, VerificationError
from lora_sft.export.adapter_files import (
    AdapterOrigin,
    let_others_read,
    make_stop_config,
    read_origin,
)
from lora_sft.export.model_card import make_merged_card
from lora_sft.export.verification import (
    LogitDifference,
    compare_logits,
    compute_logits,
    find_tolerance,
    make_prompts,
)
from lora_sft.model.adapter import load_adapter, read_adapter_tensor_names
from lora_sft.model.base_model import (
    CausalModel,
    load_base_model,
    parse_dtype,
    read_stored_dtype,
)
from lora_sft.model.quantization import dequantize, is_quantized
from lora_sft.recipe import ModelSection
from lora_sft.run_directory import write_json

Onto = Literal["dequantized", "original"]
Logits = list[torch.Tensor]
REPORT_FILE = "merge_report.json"
AGAINST = "base as merged onto + adapter"


@dataclass(frozen=True)
class MergePlan:
    """Everything a merge needs to know before it loads a weight."""

    adapter: Path
    output: Path
    origin: AdapterOrigin
    onto: Onto
    dtype: str
    verify: bool


def make_merge_plan(
    adapter: Path,
    output: Path,
    *,
    base: str | None = None,
    onto: str | None = None,
    dtype: str | None = None,
    verify: bool = True,
) -> MergePlan:
    """Decide what is merged onto what; `adapter` may be a run directory.

    Raises: ExportError where the adapter, its base, the choice or the output cannot be.
    """
    output = output.resolve() if output.name == "" else output
    if not adapter.exists():
        raise ExportError("no such folder", str(adapter), "give an adapter folder or a run")
    folder = adapter / "adapter" if (adapter / "adapter").is_dir() else adapter
    origin = read_origin(folder)
    if base is not None:
        origin = replace(origin, model_name_or_path=base, revision=None)
    if not origin.model_name_or_path:
        raise ExportError(
            "the adapter does not say which base it belongs to", str(folder), "add --base PATH"
        )
    if onto == "dequantized" and not origin.quantization:
        raise ExportError(
            "the adapter was not trained on a quantised base (as far as its folder says)",
            f"{folder}  --onto dequantized",
            "drop --onto, or write --onto original",
        )
    if not (folder / "adapter_model.safetensors").exists():
        raise ExportError(
            "the adapter's weights are missing (adapter_model.safetensors)",
            str(folder),
            "give the folder of a PEFT adapter; pickled adapter_model.bin files are not loaded",
        )
    check_output_is_free(output)
    chosen: Onto = "dequantized" if origin.quantization and onto != "original" else "original"
    return MergePlan(folder, output, origin, chosen, dtype or _default_dtype(origin), verify)


def check_output_is_free(output: Path) -> None:
    """Raises: ExportError where something is at `output` already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError("the output exists already", str(output), "give another folder")


def _default_dtype(origin: AdapterOrigin) -> str:
    """The recipe's own choice, else the base's dtype in training, else as it is stored."""
    known = origin.export_dtype or origin.dtype
    stored = None if known else read_stored_dtype(make_base_section(origin, "float32"), "--base")
    return known or stored or "bfloat16"


def describe_merge_plan(plan: MergePlan) -> dict[str, Any]:
    """The plan as the JSON document of `merge --dry-run`."""
    names = read_adapter_tensor_names(plan.adapter / "adapter_model.safetensors")
    return {
        "output": str(plan.output),
        "base": plan.origin.model_name_or_path,
        "onto": plan.onto,
        "dtype": plan.dtype,
        "adapter_tensors_total": len(names),
    }


def merge(plan: MergePlan) -> dict[str, Any]:
    """Write the merged model to `plan.output` and return the report (also a file in it).

    The folder is made beside its place and renamed when it is complete and verified; one that
    fails the verification is kept as `OUTPUT.failed`, so that nobody serves it by mistake.

    Raises: VerificationError past the tolerance; ModelError where the adapter does not fit.
    """
    started = time.monotonic()
    tokenizer = load_merge_tokenizer(plan)
    prompts = make_prompts(tokenizer) if plan.verify else []
    trained = _logits_as_trained(plan, prompts)
    adapted = _load_adapted(plan)
    reference = compute_logits(adapted, prompts)
    effect = _measure_effect(adapted, prompts, reference)
    staged = plan.output.with_name(f".{plan.output.name}.merging")
    shutil.rmtree(staged, ignore_errors=True)
    report = {"output": str(plan.output), "onto": plan.onto, **_count_tensors(plan, adapted)}
    _write_merged(plan, adapted, tokenizer, staged)
    del adapted
    if plan.verify:
        merged = compute_logits(_reload(staged), prompts)
        report["correctness"] = _judge(plan, compare_logits(reference, merged), effect)
        shift = compare_logits(trained or reference, merged)
        report["shift"] = {"against": "the model as trained", **shift.to_dict()}
    report["seconds"] = round(time.monotonic() - started, 2)
    report["peak_rss_bytes"] = measure_peak_rss()
    write_json(staged / REPORT_FILE, report)
    (staged / "README.md").write_text(make_merged_card(plan.origin.model_name_or_path, report))
    let_others_read(staged)
    _put_in_place(plan, staged, report)
    return report


def load_merge_tokenizer(plan: MergePlan) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the adapter, else the base's."""
    if (plan.adapter / "tokenizer_config.json").exists():
        return load_saved_tokenizer(plan.adapter)
    origin = plan.origin
    return load_saved_tokenizer(
        origin.model_name_or_path, origin.revision, trust_remote_code=origin.trust_remote_code
    )


def make_base_section(origin: AdapterOrigin, dtype: Any) -> ModelSection:
    """The recipe section that loads this adapter's base."""
    return ModelSection(
        model_name_or_path=origin.model_name_or_path,
        revision=origin.revision,
        dtype=dtype,
        trust_remote_code=origin.trust_remote_code,
    )


def _logits_as_trained(plan: MergePlan, prompts: Sequence[Sequence[int]]) -> Logits | None:
    """Logits of the quantised base + adapter; None where training saw the same base."""
    if not prompts or not plan.origin.quantization:
        return None
    section = make_base_section(plan.origin, plan.origin.dtype or plan.dtype)
    base = load_base_model(section, quantization=plan.origin.quantization)
    return compute_logits(load_adapter(base, plan.adapter), prompts)


def _load_adapted(plan: MergePlan) -> CausalModel:
    """Base (as merged onto) + adapter, all in float32, on the CPU."""
    cpu = torch.device("cpu")
    if plan.onto == "dequantized":
        trained_dtype = plan.origin.dtype or plan.dtype
        base = load_base_model(
            make_base_section(plan.origin, trained_dtype),
            quantization=plan.origin.quantization,
            device=cpu,
        )
        base = dequantize(base, parse_dtype(trained_dtype)).float()
    else:
        base = load_base_model(make_base_section(plan.origin, "float32"), device=cpu)
        if is_quantized(base):  # stored so: nothing else than its dequantised form is there
            base = dequantize(base, torch.float32)
    return load_adapter(base, plan.adapter).float()


def _count_tensors(plan: MergePlan, adapted: CausalModel) -> dict[str, int]:
    """`load_adapter` has proved that every saved tensor is in use; here they are counted."""
    total = len(read_adapter_tensor_names(plan.adapter / "adapter_model.safetensors"))
    merged = sum(1 for module in adapted.modules() if getattr(module, "lora_A", None))
    return {
        "tensors_merged": merged,
        "adapter_tensors_used": total,
        "adapter_tensors_total": total,
    }


def _write_merged(
    plan: MergePlan, adapted: CausalModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    merged = adapted.merge_and_unload(safe_merge=True)
    merged = merged.to(parse_dtype(plan.dtype))
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config
    merged.generation_config = make_stop_config(
        plan.origin.stop_token_ids or _stops_of(merged), tokenizer, merged.generation_config
    )
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _stops_of(model: CausalModel) -> list[int]:
    """The base's own stop tokens, for an adapter that records none."""
    stops = model.generation_config.eos_token_id if model.generation_config else None
    return stops if isinstance(stops, list) else [stops] if stops is not None else []


def _reload(folder: Path) -> CausalModel:
    """The export as anybody would load it, computed in float32 like its reference."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _measure_effect(
    adapted: CausalModel, prompts: Sequence[Sequence[int]], reference: Logits
) -> float:
    """Mean KL that the adapter itself makes: what a merge that lost it would differ by."""
    if not prompts:
        return 0.0
    with adapted.disable_adapter():
        return compare_logits(reference, compute_logits(adapted, prompts)).mean_kl


def _judge(plan: MergePlan, difference: LogitDifference, effect: float) -> dict[str, Any]:
    largest_kl, least_top1 = find_tolerance(plan.dtype, effect)
    return {
        "against": AGAINST,
        "method": "logits",
        **difference.to_dict(),
        "adapter_effect_kl": effect,
        "tolerance": {"mean_kl": largest_kl, "top1_agreement": least_top1},
        "passed": difference.mean_kl <= largest_kl and difference.top1_agreement >= least_top1,
    }


def _put_in_place(plan: MergePlan, staged: Path, report: dict[str, Any]) -> None:
    judged = report.get("correctness")
    if judged is None or judged["passed"]:
        if plan.output.exists():
            plan.output.rmdir()  # only an empty folder comes this far
        staged.rename(plan.output)
        return
    failed = plan.output.with_name(f"{plan.output.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    staged.rename(failed)
    raise VerificationError(
        f"the merged model does not answer like {AGAINST}: mean KL {judged['mean_kl']:.2e} nats "
        f"(at most {judged['tolerance']['mean_kl']:.1e}), top-1 agreement "
        f"{judged['top1_agreement']:.4f} (at least {judged['tolerance']['top1_agreement']})",
        str(failed),
        f"the report is in {failed / REPORT_FILE}; try --dtype float32 to tell rounding from error",
    )


def measure_peak_rss() -> int:
    """Peak resident memory of this process in bytes (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
