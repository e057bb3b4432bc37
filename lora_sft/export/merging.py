"""Merge adapters into their base model, file by file, and verify the merged model.

    read headers -> plan every tensor -> write to a hidden folder -> verify -> rename the folder

The base model is never completely in memory. Changed tensors are computed in float32 and rounded
once to the dtype of the export. Unchanged tensors are copied byte by byte.

A QLoRA adapter was trained on the dequantised base model, so it is merged onto that by default.
Merging into packed 4-bit weights is not offered, because packing them again loses most precision.
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
from lora_sft.export.adapter_files import apply_umask
from lora_sft.export.merge_plan import MergePlan, PreparedMerge, prepare_merge
from lora_sft.export.merge_progress import byte_progress
from lora_sft.export.proof.check_summary import REFERENCE_NAME
from lora_sft.export.proof.tensor_check import TensorDifference, compare_tensors
from lora_sft.export.staging import (
    move_into_place,
    open_staging_folder,
    write_owner_file,
)
from lora_sft.export.weights.shard_writing import ShardWriter
from lora_sft.file_names import MERGE_REPORT_FILE, MODEL_CONFIG_FILE, TOKENIZER_CONFIG_FILE
from lora_sft.log import say
from lora_sft.run_directory import write_json


class VerificationReport(TypedDict, total=False):
    """The result of a merge's verification; empty after `--verify none`.

    Attributes:
        correctness: The merged model compared with base model + adapter. It decides the exit code.
        shift: The merged model compared with the model as it was trained. It shows what the choice
            of `onto` costs.
    """

    correctness: dict[str, Any]
    shift: dict[str, Any]


class MergeReport(VerificationReport, total=False):
    """The report of a merge, as in `merge --json` and `merge_report.json`.

    Attributes:
        output: The folder that was written.
        onto: The form of the base model, `dequantized` or `original`.
        dtype: The dtype of the merged weights.
        tensors_merged: The number of changed tensors in the output.
        adapter_tensors_used: The number of adapter tensors that were merged.
        adapter_tensors_total: The number of tensors in the adapters.
        seconds: The duration of the merge, including its verification.
        peak_rss_bytes: The peak memory of this process.
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
    """Write the merged model to `plan.output` and return the report, which is also saved there.

    The model is written to a hidden folder beside the output, which is renamed after the
    verification. If the verification fails, the folder is renamed to `OUTPUT.failed`, so that it is
    not served by mistake.

    Raises: VerificationError if a difference exceeds its tolerance; all errors of `prepare_merge`.
    """
    started = time.monotonic()
    plan, prepared = prepare_merge(plan)
    with open_staging_folder(plan.output) as staged:
        with byte_progress("merging", prepared.num_bytes) as advance:
            ShardWriter(staged, prepared.form, advance).write(prepared.files)
        seconds = time.monotonic() - started
        say(f"{prepared.num_bytes / 1e6:,.1f} MB written in {seconds:.1f} s")
        write_files_beside_weights(plan, prepared, staged)
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
        write_report_and_card(plan, report, staged)
        if plan.owner is not None:
            write_owner_file(staged, plan.owner)
        apply_umask(staged)
        _move_to_final_folder(plan, staged, report)
    return report


def write_files_beside_weights(plan: MergePlan, prepared: PreparedMerge, folder: Path) -> None:
    """Write the config, the tokenizer and the other files that servers need beside the weights."""
    from lora_sft.data.templates.tokenizer import load_saved_tokenizer
    from lora_sft.export.serving.serving_files import write_serving_files

    origin = plan.origin
    if (plan.adapter / TOKENIZER_CONFIG_FILE).exists():
        tokenizer = load_saved_tokenizer(plan.adapter)
    else:
        tokenizer = load_saved_tokenizer(
            origin.model_name_or_path, origin.revision, trust_remote_code=plan.trust_remote_code
        )
    config = make_config(prepared.base.config, plan.dtype, prepared.weights.config_changes)
    write_json(folder / MODEL_CONFIG_FILE, config)
    write_serving_files(folder, tokenizer, origin)


def write_report_and_card(plan: MergePlan, report: Mapping[str, Any], folder: Path) -> None:
    """Write the files that show the result of the verification: the report and the model card."""
    from lora_sft.export.serving.serving_files import write_merged_card

    write_json(folder / MERGE_REPORT_FILE, report)
    write_merged_card(folder, plan.origin, report)


def make_config(
    config: Mapping[str, Any], dtype: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the base model's config.json, adapted to the merged weights.

    A `text_config` inside it gets the dtype and those of `changes` that it already has.
    """
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


def _verify(plan: MergePlan, prepared: PreparedMerge, staged: Path) -> VerificationReport:
    """Verify the hidden folder and return the report's `correctness` and `shift`."""
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
    from lora_sft.model.computing import computing_errors

    # Inside the hidden folder: if this merge is killed, the next one deletes both.
    with (
        tempfile.TemporaryDirectory(dir=staged, prefix=".work-") as name,
        computing_errors(plan.origin.model_name_or_path),
    ):
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
    return cast(VerificationReport, report)


def describe_tensor_check(tensors: TensorDifference) -> dict[str, Any]:
    """Return the report's `correctness` for a merge whose answers were not compared."""
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


def _move_to_final_folder(plan: MergePlan, staged: Path, report: Mapping[str, Any]) -> None:
    """Rename the hidden folder to the output, or to `OUTPUT.failed` if the verification failed.

    Raises: VerificationError if the verification failed.
    """
    correctness = report.get("correctness")
    if correctness is None or correctness["passed"]:
        move_into_place(staged, plan.output, plan.owner)
        return
    failed = plan.output.with_name(f"{plan.output.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    move_into_place(staged, failed)
    raise VerificationError(
        f"the merged model differs from {REFERENCE_NAME}: {describe_failure(correctness)}",
        str(failed),
        f"read {failed / MERGE_REPORT_FILE}. Merge again with --dtype float32: if that passes, the "
        "difference was rounding, and you can use the float32 model",
    )


def describe_failure(correctness: Mapping[str, Any]) -> str:
    """Return a text that says which results exceed their tolerance."""
    tensors = correctness.get("tensors")
    if tensors and tensors["differing"]:
        return (
            f"{tensors['differing']} of {tensors['compared']} tensors differ (first: "
            f"{tensors['first_differing']}; by {tensors['max_abs_weight_difference']:.2e} at most)"
        )
    return (
        f"mean KL {correctness['mean_kl']:.2e} nats (at most "
        f"{correctness['tolerance']['mean_kl']:.1e}), "
        f"top-1 agreement {correctness['top1_agreement']:.4f} (at least "
        f"{correctness['tolerance']['top1_agreement']})"
    )


def measure_peak_rss() -> int:
    """Return the peak resident memory of this process in bytes.

    Source: getrusage(2). Linux counts KiB, macOS bytes.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
