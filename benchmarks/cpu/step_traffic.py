"""Count the launches, element-wise bytes and kept activations of one decoder layer in a step.

The step is counted for models with one and with two layers, and for rows of two lengths. The
difference between the models is the cost of one layer. The difference between the lengths is the
cost of one token in it. Embedding, output head, optimizer and casts of weights cancel out. The
counts do not depend on the machine, so they have no spread.
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
COUNTED_STEP = 2  # step 1 also makes the optimizer's state
ONE_ROW = {"train.per_device_train_batch_size": 1, "train.global_batch_size": 1}

# The name in the table, the contestant and its options: one row, with or without recomputation.
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
    """Yield one case per entry, each counted in a separate process."""
    subject = "toy" if toy else SUBJECT
    for name, contestant, options in ENTRIES[:1] if toy else ENTRIES:
        arguments = json.dumps([subject, contestant, options])
        usage = run_measured(
            [sys.executable, "-m", "benchmarks.cpu.step_traffic", arguments],
            environment=ONE_THREAD,
        )
        role = CONTESTANTS[contestant].role
        if usage.exit_code:
            reason = usage.last_lines
            yield Case(subject, name, role, status="failed", reason=reason)
            continue
        counts = json.loads(usage.stdout.splitlines()[-1])
        measured = {
            "launches_per_layer": Measurement("launches", (counts["launches"],)),
            "element_wise_kib_per_token": Measurement("KiB", (counts["element_wise"] / 1024,)),
            "kept_kib_per_token": Measurement("KiB", (counts["saved"] / 1024,)),
        }
        facts = {"options": options, "synchronisations_a_step": counts["synchronisations"]}
        yield Case(subject, name, role, measured, facts=facts)


def count_layer(shape: ModelShape, contestant: str, options: dict[str, Any]) -> dict[str, float]:
    """Return the counts of one decoder layer in a step.

    Returns: "launches" of one layer, "element_wise" and "saved" bytes per token of one layer, and
        "synchronisations" of the whole step.
    """
    counts = {}
    for layers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            small = shape.with_layers(layers, VOCABULARY)
            model_folder = build_random_model(small, Path(folder) / "model")
            for tokens in TOKENS:
                counts[layers, tokens] = count_step(model_folder, tokens, contestant, options)
    few, many = TOKENS
    per_token = {
        name: (_count_per_layer(counts, many, name) - _count_per_layer(counts, few, name))
        / (many - few)
        for name in ("element_wise", "saved")
    }
    return {
        **per_token,
        "launches": _count_per_layer(counts, many, "launches"),
        "synchronisations": counts[1, many]["synchronisations"],
    }


def _count_per_layer(
    counts: dict[tuple[int, int], dict[str, float]], tokens: int, name: str
) -> float:
    return counts[2, tokens][name] - counts[1, tokens][name]


def count_step(
    model_folder: Path, tokens: int, contestant: str, options: dict[str, Any]
) -> dict[str, float]:
    """Return the counts of a whole step that trains one row."""
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
