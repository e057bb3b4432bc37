"""Launches, element-wise bytes and kept activations of a training step, for one decoder layer.

Models of the real width with one and with two layers, rows of two lengths: the differences leave
what one more layer costs, and what one more token costs in it; embedding, head, optimizer and the
casts of weights fall out. The counts have no spread: they do not depend on the machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, LORA_SFT, PLAIN_LOOP, TRL_DEFAULT, TRL_TUNED
from benchmarks.cpu.sampling import ONE_THREAD
from benchmarks.processes import run_measured
from benchmarks.record import Case, Measurement
from benchmarks.shapes import SHAPES, ModelShape, build_random_model

MEASURE = "step_traffic"

SUBJECT = "Llama-3.2-1B"
VOCABULARY = 1024
TOKENS = (32, 64)
COUNTED_STEP = 2  # the first one makes the optimizer's state
ONE_ROW = {"train.per_device_train_batch_size": 1, "train.global_batch_size": 1}

# name in the table, contestant, options: the same work with and without recomputation
ENTRIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("lora-sft", LORA_SFT.name, ONE_ROW),
    (
        "lora-sft, activations kept",
        LORA_SFT.name,
        {**ONE_ROW, "train.activation_checkpointing": "false"},
    ),
    ("TRL, its defaults", TRL_DEFAULT.name, {"per_device_train_batch_size": 1}),
    (
        "TRL, tuned, activations kept",
        TRL_TUNED.name,
        {"rows": 1, "activation_checkpointing": False},
    ),
    ("plain PEFT loop", PLAIN_LOOP.name, {"rows": 1, "accumulation": 1}),
)


def measure(toy: bool) -> Iterator[Case]:
    """One case an entry, each counted in a process of its own."""
    subject = "toy" if toy else SUBJECT
    for name, contestant, options in ENTRIES[:1] if toy else ENTRIES:
        question = json.dumps([subject, contestant, options])
        asked = run_measured(
            [sys.executable, "-m", "benchmarks.cpu.step_traffic", question],
            environment=ONE_THREAD,
        )
        role = CONTESTANTS[contestant].role
        if asked.exit_code:
            reason = asked.last_words
            yield Case(subject, name, role, status="failed", reason=reason)
            continue
        counts = json.loads(asked.stdout.splitlines()[-1])
        measured = {
            "launches_per_layer": Measurement("launches", (counts["launches"],)),
            "element_wise_kib_per_token": Measurement("KiB", (counts["element_wise"] / 1024,)),
            "kept_kib_per_token": Measurement("KiB", (counts["saved"] / 1024,)),
        }
        facts = {"options": options, "synchronisations_a_step": counts["synchronisations"]}
        yield Case(subject, name, role, measured, facts=facts)


def count_layer(shape: ModelShape, contestant: str, options: dict[str, Any]) -> dict[str, float]:
    """Launches of one layer; bytes of one token in it; synchronisations of the whole step."""
    counts = {}
    for layers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            small = shape.with_layers(layers, VOCABULARY)
            model_folder = build_random_model(small, Path(folder) / "model")
            for tokens in TOKENS:
                counts[layers, tokens] = count_step(model_folder, tokens, contestant, options)
    few, many = TOKENS
    per_token = {
        name: (_a_layer(counts, many, name) - _a_layer(counts, few, name)) / (many - few)
        for name in ("element_wise", "saved")
    }
    return {
        **per_token,
        "launches": _a_layer(counts, many, "launches"),
        "synchronisations": counts[1, many]["synchronisations"],
    }


def _a_layer(counts: dict[tuple[int, int], dict[str, float]], tokens: int, name: str) -> float:
    return counts[2, tokens][name] - counts[1, tokens][name]


def count_step(
    model_folder: Path, tokens: int, contestant: str, options: dict[str, Any]
) -> dict[str, float]:
    """The counts of one whole step of one row."""
    from benchmarks.contestants.job import Job
    from benchmarks.documents import DocumentSet, make_documents
    from benchmarks.traffic import CountedStep

    row = DocumentSet("row", tokens, tokens, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model_folder=model_folder,
            method="lora",
            documents=make_documents(row, VOCABULARY, COUNTED_STEP * tokens),
            max_length=tokens,
            steps=COUNTED_STEP,
            tokens_per_step=tokens,
            work_folder=Path(folder),
            options=options,
        )
        run = CONTESTANTS[contestant].build(job)
        counted = CountedStep(COUNTED_STEP, run.model)
        run.train([counted])
    traffic = counted.traffic
    return {
        "launches": traffic.launches,
        "element_wise": traffic.element_wise_bytes,
        "saved": counted.saved_bytes,
        "synchronisations": traffic.synchronisations,
    }


if __name__ == "__main__":
    subject, contestant, options = json.loads(sys.argv[1])
    print(json.dumps(count_layer(SHAPES[subject], contestant, options)))
