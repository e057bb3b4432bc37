"""Check that a timed run trained the right thing. A run that did other work does not count.

The checks are called gates:

loss       The loss of step 1 equals the loss of the base in float32 on the same documents: a new
           adapter changes nothing yet. A wrong mask, shift, mean, padding or dtype fails here.
once       Every document that the run started was fed completely, and only once.
isolated   In a packed row, a change of one document does not change the next document's results.
spread     The logits of the float32 reference vary as much as those of a trained model.
size       All contestants of a subject train the same number of weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.contestants.job import NF4_FIELDS, Run
from benchmarks.documents import FIRST_BODY_ID, Documents
from benchmarks.record import Case, Record

REFERENCE = "float32 reference"

# Relative. Rounding to bfloat16 changed the toy model's mean loss over 74 to 284 tokens by at most
# 1.8e-4.
LOSS_TOLERANCE = 2e-3
# Relative change of the hidden states. It is about 1 if attention crosses documents.
ISOLATION_TOLERANCE = 1e-3
LOGITS_STD_RANGE = (3.0, 6.5)  # trained models have about 4.4


def measure_reference_losses(
    model_folder: Path, method: str, documents: Documents, wanted: Sequence[int]
) -> dict[str, Any]:
    """Return the base's float32 loss of each wanted document, summed over its learned tokens.

    Each document goes through the base by itself. For "qlora" the base has the values of its NF4
    codes.

    Raises: ValueError if `wanted` is empty, because no contestant has run its first step yet.
    """
    if not wanted:
        raise ValueError(
            "measure a contestant first: the reference needs the documents of its first step"
        )
    model = _load_in_float32(model_folder, method)
    device = model.device
    losses, spreads = {}, []
    for number in wanted:
        ids = torch.tensor([documents.ids[number]], device=device)
        learned = documents.count_learned(number)
        with torch.no_grad():
            logits = model(ids, logits_to_keep=learned + 1).logits[0, :-1]
        targets = ids[0, -learned:]
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        losses[str(number)] = float(loss)
        spreads.append(float(logits.std()))
    return {"document_losses": losses, "logits_std": sum(spreads) / len(spreads)}


def _load_in_float32(model_folder: Path, method: str) -> Any:
    torch.backends.cuda.matmul.allow_tf32 = False
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "device_map": {"": "cuda" if torch.cuda.is_available() else "cpu"},
    }
    if method == "qlora":
        settings["quantization_config"] = BitsAndBytesConfig(**NF4_FIELDS)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, **settings)
    if method == "qlora":
        model = model.dequantize(dtype=torch.float32)
    return model.eval()


def measure_document_isolation(run: Run, documents: Documents) -> dict[str, Any]:
    """Measure how much a packed document's hidden states depend on the document before it."""
    batch = run.first_batch()
    batch.pop("labels", None)
    ids = batch["input_ids"]
    row = ids[0].cpu()
    first, base = documents.first_digit_id, documents.base
    starts = ((row >= first) & (row < first + base)).nonzero().flatten().tolist()
    if len(starts) < 2:
        return {"documents_per_row": len(starts)}
    second = starts[1]
    changed = ids.clone()
    body = slice(starts[0] + 2, second)
    changed[0, body] = FIRST_BODY_ID + (changed[0, body] + 1) % (first - FIRST_BODY_ID)
    before, after = (
        _run_decoder(run.model, {**batch, "input_ids": each}) for each in (ids, changed)
    )
    end = starts[2] if len(starts) > 2 else row.numel()
    difference = (after - before)[0, second:end].norm() / before[0, second:end].norm()
    own = (after - before)[0, body].norm() / before[0, body].norm()
    return {
        "documents_per_row": len(starts),
        "leak_between_documents": float(difference),
        "change_of_the_changed_document": float(own),
    }


def _run_decoder(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = inner.get_input_embeddings().weight.device
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        hidden = inner.base_model(**moved, use_cache=False).last_hidden_state.float()
    model.train(was_training)
    return hidden


def judge_record(record: Record) -> None:
    """Give each measured case that fails a gate the status "void", with the reasons.

    The reference is missing if the time on the GPU host ended before it was measured. Then the
    numbers stay, and the case's facts list the gates that were not checked.
    """
    subjects = {case.subject for case in record.cases.values()}
    for subject in sorted(subjects):
        cases = [case for case in record.cases.values() if case.subject == subject]
        reference = next((case for case in cases if case.contestant == REFERENCE), None)
        sizes = Counter(c.facts.get("trained_parameters") for c in cases if c.role != "reference")
        common_size = sizes.most_common(1)[0][0] if sizes else None
        for case in cases:
            if case.role != "reference" and case.status in ("measured", "void"):
                _judge(record, case, reference, common_size)


def _judge(record: Record, case: Case, reference: Case | None, size: int | None) -> None:
    faults, unchecked = find_faults(case, reference, size)
    judged = replace(
        case,
        status="void" if faults else "measured",
        reason="; ".join(faults),
        facts={**case.facts, "unchecked": unchecked},
    )
    record.put(judged, record.environments[case.environment])


def find_faults(
    case: Case, reference: Case | None, common_size: int | None
) -> tuple[list[str], list[str]]:
    """Return the faults that the gates find in a case, and the gates that could not be checked."""
    facts = case.facts
    faults, unchecked = [], []
    if facts["documents_seen_twice"] or facts["tokens_seen"] != facts["tokens_of_documents_seen"]:
        faults.append(
            f"trained {facts['tokens_seen']} tokens of documents that have "
            f"{facts['tokens_of_documents_seen']}, and {facts['documents_seen_twice']} documents "
            "twice"
        )
    leak = facts.get("leak_between_documents", 0.0)
    if leak > ISOLATION_TOLERANCE:
        faults.append(
            f"attention crosses packed documents (hidden states change by {leak:.2g}, relative)"
        )
    if facts["trained_parameters"] != common_size:
        faults.append(
            f"trains {facts['trained_parameters']} weights, other contestants {common_size}"
        )
    expected = _find_expected_loss(facts, reference)
    if expected is None:
        unchecked.append("loss, spread: these documents have no float32 reference")
        return faults, unchecked
    assert reference is not None
    low, high = LOGITS_STD_RANGE
    if not low <= reference.facts["logits_std"] <= high:
        faults.append(
            f"the reference's logits have a standard deviation of "
            f"{reference.facts['logits_std']:.2g}, not {low} to {high}"
        )
    found = facts["first_step_loss"]
    if found is None or abs(found - expected) > LOSS_TOLERANCE * expected:
        faults.append(f"the loss of step 1 is {found}, in float32 it is {expected:.5f}")
    return faults, unchecked


def _find_expected_loss(facts: Mapping[str, Any], reference: Case | None) -> float | None:
    losses = reference.facts.get("document_losses", {}) if reference is not None else {}
    numbers = facts["first_step_documents"]
    if not numbers or any(str(number) not in losses for number in numbers):
        return None
    learned = facts["first_step_learned_tokens"]
    return float(sum(losses[str(number)] for number in numbers) / learned)
