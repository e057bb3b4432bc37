"""Does the merged folder answer like its base with the adapter, and like the model in training?

Two questions that are kept apart. *Correctness* decides the exit code: the folder, reloaded from
disk by plain transformers, against the base that it was merged onto plus the adapters through
PEFT, everything computed in float32, so that nothing but the merge itself can differ. *Shift* is
reported and never fails: against the model as it was trained, for every form of the base that is
at hand, so that a person can choose by measurement.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from lora_sft.data.templates.tokenizer import load_saved_tokenizer
from lora_sft.export.proof.answering_models import (
    MEMORY_SHARE,
    AnsweringModels,
    Logits,
    choose_models,
    make_base_section,
)
from lora_sft.export.proof.check_summary import AGAINST
from lora_sft.export.proof.verification import (
    LogitDifference,
    compare_logits,
    compute_logits,
    compute_loss,
    continue_greedily,
    find_tolerance,
    make_prompts,
)
from lora_sft.machine_room import find_free_memory
from lora_sft.model.adapter import attach_adapters
from lora_sft.model.base_model import load_base_model, parse_dtype
from lora_sft.run_directory import RunDirectory

if TYPE_CHECKING:
    from lora_sft.export.merge_plan import MergePlan, Onto, PreparedMerge

AS_TRAINED = "the model as trained"
QUANTISED_BYTES_A_PARAMETER = 1.5  # codes, embeddings and the largest layer dequantised
LOGIT_BYTES = 256 << 20  # of one model's logits over all prompts
LARGEST_PROMPT_TOKENS = 256
NUM_GREEDY_PROMPTS = 4
GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Prompts:
    """Token ids to answer; `labels` where they are validation rows, whose loss can be told."""

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def num_rows(self) -> int:
        return len(self.labels)


def compare_answers(
    plan: MergePlan, prepared: PreparedMerge, folder: Path, workspace: Path
) -> dict[str, Any] | str:
    """The report's `correctness` and `shift`, or why answers cannot be compared here."""
    models = choose_models(plan, prepared, workspace)
    if isinstance(models, str):
        return models
    prompts = choose_prompts(plan, load_saved_tokenizer(folder), _count_tokens(prepared))
    trained = _answer_as_trained(plan, prepared, prompts)
    reference, effect, greedy = _answer_adapted(plan, models, prompts)
    model = models.load_folder(folder)
    merged = models.answer(model, prompts.ids)
    correctness = _judge(plan.dtype, compare_logits(reference, merged), effect)
    if models.is_whole:
        continued = continue_greedily(model, _first(prompts), GREEDY_TOKENS)
        equal = [ours == theirs for ours, theirs in zip(greedy, continued, strict=True)]
        correctness |= {"greedy_equal": sum(equal), "greedy_prompts": len(equal)}
    del model
    gc.collect()
    as_trained = trained if plan.origin.quantization else reference
    shift = _measure_all_shifts(plan, prepared, models, prompts, as_trained, merged)
    return {"correctness": correctness, "shift": shift}


def _answer_adapted(
    plan: MergePlan, models: AnsweringModels, prompts: Prompts
) -> tuple[Logits, float, list[list[int]]]:
    """Base + adapters: logits, mean KL that the adapters make, and greedy continuations."""
    adapted = models.load_adapted(plan.onto)
    reference = models.answer(adapted, prompts.ids)
    greedy = continue_greedily(adapted, _first(prompts), GREEDY_TOKENS) if models.is_whole else []
    with adapted.disable_adapter():
        plain = models.answer(adapted, prompts.ids)
    return reference, compare_logits(reference, plain).mean_kl, greedy


def _measure_all_shifts(
    plan: MergePlan,
    prepared: PreparedMerge,
    models: AnsweringModels,
    prompts: Prompts,
    trained: Logits | None,
    merged: Logits,
) -> dict[str, Any]:
    """Against the model as trained: of this merge, and of one onto the other form of the base."""
    if trained is None:
        return {}
    shift: dict[str, Any] = {"against": AS_TRAINED, **_measure_shift(prompts, trained, merged)}
    if plan.origin.quantization and prepared.base.stored_quantization is None:
        other: Onto = "original" if plan.onto == "dequantized" else "dequantized"
        choices = {plan.onto: _measure_shift(prompts, trained, merged)}
        if models.is_whole:
            choices[other] = _measure_other(plan, models, other, prompts, trained)
        shift["choices"] = choices
    return shift


def choose_prompts(plan: MergePlan, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Prompts:
    """The run's validation rows where it kept some, then the built-in prompts, within a budget."""
    rows = read_validation_sample(plan.run)
    ids = [row["input_ids"][:LARGEST_PROMPT_TOKENS] for row in rows]
    labels = [row["labels"][:LARGEST_PROMPT_TOKENS] for row in rows]
    room = LOGIT_BYTES // (4 * max(num_tokens, 1))
    for prompt in make_prompts(tokenizer):
        ids.append(prompt)
    kept: list[Sequence[int]] = []
    for prompt in ids:
        if kept and sum(map(len, kept)) + len(prompt) > room:
            break
        kept.append(prompt)
    return Prompts(kept, labels[: len(kept)])


def read_validation_sample(run: Path | None) -> list[dict[str, Any]]:
    """The rows that a run kept of its validation split for this purpose."""
    path = RunDirectory(run).validation_sample if run is not None else None
    if path is None or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _count_tokens(prepared: PreparedMerge) -> int:
    changed = prepared.weights.config_changes.get("vocab_size")
    config = prepared.base.config
    stored = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(changed or stored or 0)


def _first(prompts: Prompts) -> Sequence[Sequence[int]]:
    """Built-in prompts and beginnings of rows, for continuations."""
    return [ids[:LARGEST_PROMPT_TOKENS] for ids in prompts.ids[-NUM_GREEDY_PROMPTS:]]


def _answer_as_trained(plan: MergePlan, prepared: PreparedMerge, prompts: Prompts) -> Logits | None:
    """Logits of the quantised base + adapters, in the dtype of training; None where training saw
    the base as it is merged onto, or where the quantised base does not fit."""
    origin = plan.origin
    needed = QUANTISED_BYTES_A_PARAMETER * prepared.base.num_parameters
    if not origin.quantization or needed > MEMORY_SHARE * find_free_memory():
        return None
    section = make_base_section(plan, origin.dtype or plan.dtype)
    base = load_base_model(section, quantization=origin.quantization)
    return compute_logits(attach_adapters(base, plan.adapters), prompts.ids)


def _judge(dtype: str, difference: LogitDifference, effect: float) -> dict[str, Any]:
    largest_kl, least_top1 = find_tolerance(dtype, effect)
    return {
        "against": AGAINST,
        "method": "logits",
        **difference.to_dict(),
        "adapter_effect_kl": effect,
        "tolerance": {"mean_kl": largest_kl, "top1_agreement": least_top1},
        "passed": difference.mean_kl <= largest_kl and difference.top1_agreement >= least_top1,
    }


def _measure_shift(prompts: Prompts, trained: Logits, merged: Logits) -> dict[str, Any]:
    """Distance from the model as trained, and the loss on held-out rows where there are some."""
    shift: dict[str, Any] = compare_logits(trained, merged).to_dict()
    rows = prompts.num_rows
    if rows:
        shift |= {
            "held_out_rows": rows,
            "loss_as_trained": compute_loss(trained[:rows], prompts.labels),
            "loss": compute_loss(merged[:rows], prompts.labels),
        }
    return shift


def _measure_other(
    plan: MergePlan, models: AnsweringModels, onto: str, prompts: Prompts, trained: Logits
) -> dict[str, Any]:
    """What a merge onto the other form of the base would have shifted."""
    merged = models.load_adapted(onto).merge_and_unload()
    merged = merged.to(parse_dtype(plan.dtype)).float()
    return _measure_shift(prompts, trained, compute_logits(merged, prompts.ids))
