"""The gates refuse the speed of a run that trained something else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.documents import DOCUMENT_SETS, Documents, make_documents
from benchmarks.gates import (
    ISOLATION_TOLERANCE,
    REFERENCE,
    find_faults,
    measure_document_isolation,
    measure_reference_losses,
)
from benchmarks.record import Case
from benchmarks.shapes import SHAPES, build_random_model

GOOD_FACTS: dict[str, Any] = {
    "documents_seen_twice": 0,
    "tokens_seen": 100,
    "tokens_of_documents_seen": 100,
    "trained_parameters": 32768,
    "first_step_loss": 15.0,
    "first_step_documents": [0, 1],
    "first_step_learned_tokens": 20,
}
REFERENCE_FACTS = {"document_losses": {"0": 100.0, "1": 200.0}, "logits_std": 4.4}


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_model(SHAPES["toy"], tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def documents() -> Documents:
    return make_documents(DOCUMENT_SETS["toy"], SHAPES["toy"].vocabulary, 600)


def list_faults(facts: dict[str, Any], reference: dict[str, Any] | None = None) -> list[str]:
    case = Case("a model", "TRL", "peer", facts={**GOOD_FACTS, **facts})
    given = Case("a model", REFERENCE, "reference", facts=reference or REFERENCE_FACTS)
    return find_faults(case, given, 32768)[0]


def test_a_run_that_did_the_work_passes_every_gate() -> None:
    assert list_faults({}) == []
    assert list_faults({"leak_between_documents": 1e-6}) == []
    assert list_faults({"first_step_loss": 15.0 * 1.0019}) == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"first_step_loss": 15.0 * 1.003}, "the loss of step 1 is 15.0"),
        ({"first_step_loss": None}, "the loss of step 1 is None"),
        ({"tokens_seen": 99}, "trained 99 tokens of documents that have 100"),
        ({"documents_seen_twice": 1}, "and 1 documents twice"),
        ({"leak_between_documents": 0.5}, "attention crosses packed documents"),
        ({"trained_parameters": 8192}, "trains 8192 weights, other contestants 32768"),
    ],
)
def test_each_gate_refuses_its_fault_and_names_it(facts: dict[str, Any], message: str) -> None:
    faults = list_faults(facts)
    assert len(faults) == 1
    assert message in faults[0]


def test_a_flat_softmax_is_refused() -> None:
    faults = list_faults({}, {**REFERENCE_FACTS, "logits_std": 0.9})
    assert "logits have a standard deviation of 0.9" in faults[0]


def test_without_a_reference_the_loss_is_reported_as_unchecked() -> None:
    case = Case("a model", "TRL", "peer", facts=GOOD_FACTS)
    faults, unchecked = find_faults(case, None, 32768)
    assert faults == []
    assert "no float32 reference" in unchecked[0]


def test_the_reference_is_the_float32_loss_of_each_document_by_itself(
    toy_model: Path, documents: Documents
) -> None:
    facts = measure_reference_losses(toy_model, "lora", documents, [4])
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    row = documents.to_labelled_rows()[4]
    ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
    mean = model(ids, labels=labels).loss.item()
    assert facts["document_losses"]["4"] == pytest.approx(
        mean * documents.count_learned(4), rel=1e-5
    )
    assert 3 < facts["logits_std"] < 6.5


@pytest.mark.parametrize("isolated", [True, False])
def test_attention_across_packed_documents_is_detected(
    toy_model: Path, documents: Documents, isolated: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    first, second = documents.ids[0], documents.ids[1]
    batch: dict[str, Any] = {"input_ids": torch.tensor([first + second])}
    if isolated:  # without position ids, the model sees the row as one document
        batch["position_ids"] = torch.tensor([[*range(len(first)), *range(len(second))]])
    run: Any = SimpleNamespace(model=model, first_batch=lambda: dict(batch))
    facts = measure_document_isolation(run, documents)
    assert facts["documents_per_row"] == 2
    assert facts["change_of_the_changed_document"] > 0.1
    assert (facts["leak_between_documents"] <= ISOLATION_TOLERANCE) == isolated
