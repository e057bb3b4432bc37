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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from lora_sft.errors import CapabilityError, VerificationError
from lora_sft.export.adapter_files import let_others_read
from lora_sft.export.merge_plan import MergePlan, PreparedMerge, prepare_merge
from lora_sft.export.merge_progress import byte_progress
from lora_sft.export.proof.check_summary import REFERENCE_NAME
from lora_sft.export.proof.tensor_check import TensorDifference, compare_tensors
from lora_sft.export.staging import (
    mark_as_made_by,
    put_in_place,
    staged_output,
)
from lora_sft.export.weights.shard_writing import ShardWriter
from lora_sft.file_names import MERGE_REPORT_FILE, MODEL_CONFIG_FILE, TOKENIZER_CONFIG_FILE
from lora_sft.log import say
from lora_sft.run_directory import write_json


class Verified(TypedDict, total=False):
    """What the verification of a merge found; empty if there was none.

    Attributes:
        correctness: The merged model against base and adapter; it decides the exit code.
        shift: What the choice of base costs against the model as it was trained.
    """

    correctness: dict[str, Any]
    shift: dict[str, Any]


class MergeReport(Verified, total=False):
    """What a merge did: the document of `merge --json` and of `merge_report.json`.

    Attributes:
        output: The folder that was written.
        onto: The form of the base, `dequantized` or `original`.
        dtype: The dtype of the merged weights.
        tensors_merged: How many tensors of the base were changed.
        adapter_tensors_used: How many tensors of the adapters went into them.
        adapter_tensors_total: How many tensors the adapters hold.
        seconds: How long the merge took, verification included.
        peak_rss_bytes: The largest memory of this process.
    """

    output: str
    onto: str
    dtype: str
    tensors_merged: int
    adapter_tensors_used: int
    adapter_tensors_total: int
    seconds: float
    peak_rss_bytes: int


def merge(plan: MergePlan) -> MergeReport:
    """Write the merged model to `plan.output` and return the report (also a file in it).

    The folder is made beside its place and renamed when it is complete and verified; one that
    fails the verification is kept as `OUTPUT.failed`, so that nobody serves it by mistake.

    Raises: VerificationError past the tolerance; and as `prepare_merge`.
    """
    started = time.monotonic()
    plan, prepared = prepare_merge(plan)
    with staged_output(plan.output) as staged:
        with byte_progress("merging", prepared.num_bytes) as advance:
            ShardWriter(staged, prepared.form, advance).write(prepared.files)
        seconds = time.monotonic() - started
        say(f"{prepared.num_bytes / 1e6:,.1f} MB written in {seconds:.1f} s")
        write_companions(plan, prepared, staged)
        verified = _verify(plan, prepared, staged)
        report: MergeReport = {
            "output": str(plan.output),
            "onto": plan.onto,
            "dtype": plan.dtype,
            "tensors_merged": prepared.weights.num_changed,
            "adapter_tensors_used": prepared.weights.adapter_tensors,
            "adapter_tensors_total": prepared.weights.adapter_tensors,
            **verified,
            "seconds": round(time.monotonic() - started, 2),
            "peak_rss_bytes": measure_peak_rss(),
        }
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
    if (plan.adapter / TOKENIZER_CONFIG_FILE).exists():
        tokenizer = load_saved_tokenizer(plan.adapter)
    else:
        tokenizer = load_saved_tokenizer(
            origin.model_name_or_path, origin.revision, trust_remote_code=origin.trust_remote_code
        )
    config = make_config(prepared.base.config, plan.dtype, prepared.weights.config_changes)
    write_json(folder / MODEL_CONFIG_FILE, config)
    write_serving_files(folder, tokenizer, origin)


def finish_companions(plan: MergePlan, report: Mapping[str, Any], folder: Path) -> None:
    """What tells of the verification: the report and the card."""
    from lora_sft.export.serving.serving_files import write_merged_card

    write_json(folder / MERGE_REPORT_FILE, report)
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


def _verify(plan: MergePlan, prepared: PreparedMerge, staged: Path) -> Verified:
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
    return cast(Verified, report)


def describe_tensor_check(tensors: TensorDifference) -> dict[str, Any]:
    """The report's `correctness` where only tensors were compared."""
    return {
        "against": REFERENCE_NAME,
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
        f"the merged model is not {REFERENCE_NAME}: {describe_failure(judged)}",
        str(failed),
        f"the report is in {failed / MERGE_REPORT_FILE}; "
        "try --dtype float32 to tell rounding from error",
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
