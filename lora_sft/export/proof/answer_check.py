"""Compare the answers of the merged model with base model + adapter, and with the trained model.

*Correctness* decides the exit code. The merged folder is loaded from disk by plain transformers. It
is compared with the base model that it was merged onto, with the adapters attached by PEFT. Both
compute in float32, so that only the merge can cause a difference.

*Shift* is only reported. The merged model is compared with the model as it was trained, once for
each available form of the base model. A user can choose a form by these numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from lora_sft.data.templates.tokenizer import load_saved_tokenizer
from lora_sft.errors import ModelError
from lora_sft.export.proof.answering_models import (
    MEMORY_SHARE,
    AnsweringModels,
    Logits,
    choose_models,
    make_base_section,
)
from lora_sft.export.proof.check_summary import REFERENCE_NAME
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
from lora_sft.model_files.json_files import read_json_object
from lora_sft.run_directory import RunDirectory

if TYPE_CHECKING:
    from lora_sft.export.merge_plan import MergePlan, Onto, PreparedMerge

AS_TRAINED = "the model as trained"
QUANTISED_BYTES_PER_PARAMETER = 1.5  # codes, embeddings, and the largest layer dequantised
LOGIT_BYTES = 256 << 20  # for the logits of one model over all prompts
LARGEST_PROMPT_TOKENS = 256
NUM_GREEDY_PROMPTS = 4
GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Prompts:
    """The prompts of a comparison.

    Attributes:
        ids: The token ids of each prompt. Validation rows come first.
        labels: The labels of the validation rows, to compute their loss.
    """

    ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]

    @property
    def num_rows(self) -> int:
        return len(self.labels)


def compare_answers(
    plan: MergePlan, prepared: PreparedMerge, folder: Path, workspace: Path
) -> dict[str, Any] | str:
    """Compare the answers of the models.

    Returns: The report's `correctness` and `shift`, or a text that says why the answers cannot be
    compared.
    """
    models = choose_models(plan, prepared, workspace)
    if isinstance(models, str):
        return models
    prompts = choose_prompts(plan, load_saved_tokenizer(folder), _count_tokens(prepared))
    trained = _answer_as_trained(plan, prepared, prompts)
    reference, effect, greedy = _answer_base_with_adapters(plan, models, prompts)
    model = models.load_folder(folder)
    merged = models.answer(model, prompts.ids)
    correctness = _make_correctness(plan.dtype, compare_logits(reference, merged), effect)
    if models.is_whole:
        continued = continue_greedily(model, _choose_greedy_prompts(prompts), GREEDY_TOKENS)
        equal = [ours == theirs for ours, theirs in zip(greedy, continued, strict=True)]
        correctness |= {"greedy_equal": sum(equal), "greedy_prompts": len(equal)}
    del model
    gc.collect()
    as_trained = trained if plan.origin.quantization else reference
    shift = _measure_all_shifts(plan, prepared, models, prompts, as_trained, merged)
    return {"correctness": correctness, "shift": shift}


def _answer_base_with_adapters(
    plan: MergePlan, models: AnsweringModels, prompts: Prompts
) -> tuple[Logits, float, list[list[int]]]:
    """Return the answers of the base model with the adapters to all prompts.

    Returns: Its logits, the mean KL between it and the base model without adapters, and its greedy
    continuations.
    """
    adapted = models.load_adapted(plan.onto)
    reference = models.answer(adapted, prompts.ids)
    greedy = (
        continue_greedily(adapted, _choose_greedy_prompts(prompts), GREEDY_TOKENS)
        if models.is_whole
        else []
    )
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
    """Return the report's `shift`: for this merge, and for the other form of the base model."""
    if trained is None:
        return {}
    shift: dict[str, Any] = {"against": AS_TRAINED, **_measure_shift(prompts, trained, merged)}
    if plan.origin.quantization and prepared.base.stored_quantization is None:
        other: Onto = "original" if plan.onto == "dequantized" else "dequantized"
        choices = {plan.onto: _measure_shift(prompts, trained, merged)}
        if models.is_whole:
            choices[other] = _measure_other_form(plan, models, other, prompts, trained)
        shift["choices"] = choices
    return shift


def choose_prompts(plan: MergePlan, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Prompts:
    """Return the run's validation rows and the built-in prompts, as many as LOGIT_BYTES allows."""
    rows = read_validation_sample(plan.run, num_tokens)
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


def read_validation_sample(run: Path | None, num_tokens: int) -> list[dict[str, Any]]:
    """Return the validation rows that a run saved for this comparison. The list may be empty.

    Raises: ModelError if the file is damaged, or if a token is not in the vocabulary of the model.
    """
    path = RunDirectory(run).validation_sample if run is not None else None
    if path is None or not path.exists():
        return []
    fix = f"restore {path.name} from a copy, or delete it: the merge then uses its own prompts"
    rows = read_json_object(path, {"rows": list[dict[str, list[int]]]}, fix=fix).get("rows", [])
    for row in rows:
        ids, labels = row.get("input_ids", []), row.get("labels", [])
        is_known = (
            all(0 <= token < num_tokens for token in ids) and max(labels, default=0) < num_tokens
        )
        if not ids or len(ids) != len(labels) or not is_known:
            raise ModelError(f"a row of {path.name} is damaged", f"{path}  rows", fix)
    return list(rows)


def _count_tokens(prepared: PreparedMerge) -> int:
    changed = prepared.weights.config_changes.get("vocab_size")
    config = prepared.base.config
    stored = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(changed or stored or 0)


def _choose_greedy_prompts(prompts: Prompts) -> Sequence[Sequence[int]]:
    """Return the last prompts, cut to LARGEST_PROMPT_TOKENS."""
    return [ids[:LARGEST_PROMPT_TOKENS] for ids in prompts.ids[-NUM_GREEDY_PROMPTS:]]


def _answer_as_trained(plan: MergePlan, prepared: PreparedMerge, prompts: Prompts) -> Logits | None:
    """Return the logits of the quantised base model with the adapters, in the dtype of training.

    Return None if training did not quantise the base model, or if it does not fit into memory.
    """
    origin = plan.origin
    needed = QUANTISED_BYTES_PER_PARAMETER * prepared.base.num_parameters
    if not origin.quantization or needed > MEMORY_SHARE * find_free_memory():
        return None
    section = make_base_section(plan, origin.dtype or plan.dtype)
    base = load_base_model(section, quantization=origin.quantization)
    return compute_logits(attach_adapters(base, plan.adapters), prompts.ids)


def _make_correctness(dtype: str, difference: LogitDifference, effect: float) -> dict[str, Any]:
    """Return the report's `correctness`.

    Args:
        effect: The mean KL between the base model with and without the adapters.
    """
    largest_kl, least_top1 = find_tolerance(dtype, effect)
    return {
        "against": REFERENCE_NAME,
        "method": "logits",
        **difference.to_dict(),
        "adapter_effect_kl": effect,
        "tolerance": {"mean_kl": largest_kl, "top1_agreement": least_top1},
        "passed": difference.mean_kl <= largest_kl and difference.top1_agreement >= least_top1,
    }


def _measure_shift(prompts: Prompts, trained: Logits, merged: Logits) -> dict[str, Any]:
    """Return the difference from the trained model, and the losses on the validation rows."""
    shift: dict[str, Any] = compare_logits(trained, merged).to_dict()
    rows = prompts.num_rows
    if rows:
        shift |= {
            "held_out_rows": rows,
            "loss_as_trained": compute_loss(trained[:rows], prompts.labels),
            "loss": compute_loss(merged[:rows], prompts.labels),
        }
    return shift


def _measure_other_form(
    plan: MergePlan, models: AnsweringModels, onto: str, prompts: Prompts, trained: Logits
) -> dict[str, Any]:
    """Return the shift that a merge onto another form of the base model would have."""
    merged = models.load_adapted(onto).merge_and_unload()
    merged = merged.to(parse_dtype(plan.dtype)).float()
    return _measure_shift(prompts, trained, compute_logits(merged, prompts.ids))
