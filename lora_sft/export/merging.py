"""Merge adapters into their base, file by file, and prove that the result answers the same.

    headers -> plan of every tensor -> files in a hidden folder -> verified -> renamed

The base is never whole in memory. Each merged tensor is computed in float32 and rounded once to
the dtype of the export; what the adapter does not touch is copied byte by byte. A QLoRA adapter
learned against the dequantised base, so that is what it is merged onto by default; merging into
packed 4-bit weights and packing again loses most and is not offered.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lora_sft.errors import CapabilityError, ExportError, VerificationError
from lora_sft.export.adapter_files import AdapterOrigin, let_others_read, read_origin
from lora_sft.export.merge_progress import byte_progress
from lora_sft.export.proof.check_summary import AGAINST
from lora_sft.export.proof.tensor_check import TensorDifference, compare_tensors
from lora_sft.export.staging import (
    Owner,
    check_output_is_free,
    mark_as_made_by,
    put_in_place,
    staged_output,
)
from lora_sft.export.weights.adapter_reading import SavedAdapter, read_adapter
from lora_sft.export.weights.base_form import BaseForm, find_form
from lora_sft.export.weights.shard_writing import OutputFile, ShardWriter, lay_out_files
from lora_sft.export.weights.weight_plan import WeightPlan, make_weight_plan
from lora_sft.log import say
from lora_sft.machine_room import check_disk_room, check_memory_room
from lora_sft.model_files.base_checkpoint import (
    CONFIG_FILE,
    BaseCheckpoint,
    check_fingerprint,
    read_base_checkpoint,
)
from lora_sft.recipe.schema import QUANTIZATION_PRESETS
from lora_sft.run_directory import write_json

Onto = Literal["dequantized", "original"]
Verify = Literal["auto", "logits", "tensors", "none"]
REPORT_FILE = "merge_report.json"
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
    form = find_form(base, plan.onto, origin.quantization, trained, trust_remote_code=trust)
    weights = make_weight_plan(form.base, adapters, trust_remote_code=trust)
    files = lay_out_files(weights, form, getattr(torch, plan.dtype))
    prepared = PreparedMerge(base, adapters, form, weights, files)
    check_disk_room(plan.output, prepared.num_bytes + SLACK_BYTES)
    check_memory_room(estimate_memory(form))
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
        dtype = "bfloat16" if base.stored_quantization else str(base.main_dtype)[len("torch.") :]
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


def merge(plan: MergePlan) -> dict[str, Any]:
    """Write the merged model to `plan.output` and return the report (also a file in it).

    The folder is made beside its place and renamed when it is complete and verified; one that
    fails the verification is kept as `OUTPUT.failed`, so that nobody serves it by mistake.

    Raises: VerificationError past the tolerance; and as `prepare_merge`.
    """
    started = time.monotonic()
    plan, prepared = prepare_merge(plan)
    report: dict[str, Any] = {
        "output": str(plan.output),
        "onto": plan.onto,
        "dtype": plan.dtype,
        "tensors_merged": prepared.weights.num_changed,
        "adapter_tensors_used": prepared.weights.adapter_tensors,
        "adapter_tensors_total": prepared.weights.adapter_tensors,
    }
    with staged_output(plan.output) as staged:
        with byte_progress("merging", prepared.num_bytes) as advance:
            ShardWriter(staged, prepared.form, advance).write(prepared.files)
        seconds = time.monotonic() - started
        say(f"{prepared.num_bytes / 1e6:,.1f} MB written in {seconds:.1f} s")
        write_companions(plan, prepared, staged)
        report.update(_verify(plan, prepared, staged))
        report["seconds"] = round(time.monotonic() - started, 2)
        report["peak_rss_bytes"] = measure_peak_rss()
        finish_companions(plan, report, staged)
        if plan.owner is not None:
            mark_as_made_by(staged, plan.owner)
        let_others_read(staged)
        _judge_and_place(plan, staged, report)
    return report


def write_companions(plan: MergePlan, prepared: PreparedMerge, folder: Path) -> None:
    """What makes a folder of weights a model that servers read."""
    from lora_sft.data.templates.tokenizer import load_saved_tokenizer
    from lora_sft.export.serving.serving_files import write_serving_files

    origin = plan.origin
    if (plan.adapter / "tokenizer_config.json").exists():
        tokenizer = load_saved_tokenizer(plan.adapter)
    else:
        tokenizer = load_saved_tokenizer(
            origin.model_name_or_path, origin.revision, trust_remote_code=origin.trust_remote_code
        )
    config = make_config(prepared.base.config, plan.dtype, prepared.weights.config_changes)
    write_json(folder / CONFIG_FILE, config)
    write_serving_files(folder, tokenizer, origin)


def finish_companions(plan: MergePlan, report: Mapping[str, Any], folder: Path) -> None:
    """What tells of the verification: the report and the card."""
    from lora_sft.export.serving.serving_files import write_merged_card

    write_json(folder / REPORT_FILE, report)
    write_merged_card(folder, plan.origin, report)


def make_config(
    config: Mapping[str, Any], dtype: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The base's config.json as the merged weights need it, also inside `text_config`."""
    made = {name: value for name, value in config.items() if name != "quantization_config"}
    dtype_names = [name for name in ("dtype", "torch_dtype") if name in made] or ["dtype"]
    made.update(dict.fromkeys(dtype_names, dtype))
    text = made.get("text_config")
    if isinstance(text, dict):
        made["text_config"] = text = make_config(text, dtype, {})
        text.update({name: value for name, value in changes.items() if name in text})
        changes = {name: value for name, value in changes.items() if name not in text}
    made.update(changes)
    return made


def _verify(plan: MergePlan, prepared: PreparedMerge, staged: Path) -> dict[str, Any]:
    """The report's `correctness` and `shift`."""
    if plan.verify == "none":
        return {}
    tensors: TensorDifference | None = None
    if plan.verify != "logits":
        with byte_progress("verifying", prepared.num_bytes) as advance:
            tensors = compare_tensors(prepared.files, staged, prepared.form, advance)
    if plan.verify == "tensors":
        assert tensors is not None
        return {"correctness": describe_tensor_check(tensors)}
    from lora_sft.export.proof.answer_check import compare_answers

    # inside the staging folder, so that a killed merge leaves nothing else behind
    with tempfile.TemporaryDirectory(dir=staged, prefix=".work-") as name:
        report = compare_answers(plan, prepared, staged, Path(name))
    if isinstance(report, str):
        if tensors is None:
            raise CapabilityError(report, "--verify logits", "write --verify tensors")
        say(f"answers were not compared: {report}")
        return {"correctness": {**describe_tensor_check(tensors), "logits_left_out": report}}
    if tensors is not None:
        checked = report["correctness"]
        checked["tensors"] = tensors.to_dict()
        checked["passed"] = checked["passed"] and tensors.passed
    return report


def describe_tensor_check(tensors: TensorDifference) -> dict[str, Any]:
    """The report's `correctness` where only tensors were compared."""
    return {
        "against": AGAINST,
        "method": "tensors",
        "prompts": 0,
        "max_abs_logit_difference": None,
        "mean_kl": None,
        "top1_agreement": None,
        "tolerance": {"ulps": tensors.to_dict()["tolerance_ulps"]},
        "tensors": tensors.to_dict(),
        "passed": tensors.passed,
    }


def _judge_and_place(plan: MergePlan, staged: Path, report: Mapping[str, Any]) -> None:
    judged = report.get("correctness")
    if judged is None or judged["passed"]:
        put_in_place(staged, plan.output, plan.owner)
        return
    failed = plan.output.with_name(f"{plan.output.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    put_in_place(staged, failed)
    raise VerificationError(
        f"the merged model is not {AGAINST}: {describe_failure(judged)}",
        str(failed),
        f"the report is in {failed / REPORT_FILE}; try --dtype float32 to tell rounding from error",
    )


def describe_failure(judged: Mapping[str, Any]) -> str:
    """What of a verification is past its tolerance."""
    tensors = judged.get("tensors")
    if tensors and tensors["differing"]:
        return (
            f"{tensors['differing']} of {tensors['compared']} tensors differ (first: "
            f"{tensors['first_differing']}; by {tensors['max_abs_weight_difference']:.2e} at most)"
        )
    return (
        f"mean KL {judged['mean_kl']:.2e} nats (at most {judged['tolerance']['mean_kl']:.1e}), "
        f"top-1 agreement {judged['top1_agreement']:.4f} (at least "
        f"{judged['tolerance']['top1_agreement']})"
    )


def measure_peak_rss() -> int:
    """Peak resident memory of this process in bytes (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
