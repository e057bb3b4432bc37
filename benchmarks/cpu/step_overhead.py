"""What the trainer itself costs: CPU time of an optimizer step on a deep and very narrow model.

32 layers of width 64 with 224 adapted layers, one row of 16 tokens: the arithmetic is next to
nothing, so the time is that of Python around it. A GPU waits for this time where its own work is
shorter. The plain loop is the limit: no trainer can do less than it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, LORA_SFT, PLAIN_LOOP, TRL_DEFAULT
from benchmarks.cpu.sampling import ONE_THREAD
from benchmarks.processes import run_measured
from benchmarks.record import Case, Measurement, Role
from benchmarks.shapes import ModelShape, build_random_model

MEASURE = "step_overhead"

SUBJECT = "32 layers of width 64, one row of 16 tokens"
DEEP_AND_NARROW = ModelShape("deep", "llama", 64, 128, 32, 4, 2, 16, 1024, False)
TOKENS = 16
WARMUP_STEPS, STEPS = 10, 60
REPEATS = 3

# The same work for each: float32, nothing recomputed, one row a step.
ENTRIES: dict[str, tuple[Role, dict[str, Any]]] = {
    LORA_SFT.name: (
        "ours",
        {
            "model.dtype": "float32",
            "train.activation_checkpointing": "false",
            "train.per_device_train_batch_size": 1,
            "train.global_batch_size": 1,
        },
    ),
    TRL_DEFAULT.name: (
        "peer",
        {"bf16": False, "activation_checkpointing": False, "per_device_train_batch_size": 1},
    ),
    PLAIN_LOOP.name: (
        "limit",
        {"rows": 1, "accumulation": 1, "dtype": "float32", "activation_checkpointing": False},
    ),
}


def measure(toy: bool) -> Iterator[Case]:
    """The contestants in turn, several times, each in a process of its own."""
    found: dict[str, Case] = {}
    for _ in range(1 if toy else REPEATS):
        for name, (role, options) in ENTRIES.items():
            case = _measure_once(name, role, options, toy)
            found[name] = found[name].joined(case) if name in found else case
    yield from found.values()


def _measure_once(name: str, role: Role, options: dict[str, Any], toy: bool) -> Case:
    question = json.dumps([name, options, toy])
    asked = run_measured(
        [sys.executable, "-m", "benchmarks.cpu.step_overhead", question],
        environment=ONE_THREAD,
    )
    if asked.exit_code:
        return Case(SUBJECT, name, role, status="failed", reason=asked.last_words)
    seconds = json.loads(asked.stdout.splitlines()[-1])
    measured = {
        "cpu_seconds": Measurement("CPU s", (seconds["cpu"],)),
        "wall_seconds": Measurement("s", (seconds["wall"],)),
        "peak_rss_bytes": Measurement("B", (float(asked.peak_rss_bytes),)),
    }
    return Case(SUBJECT, name, role, measured, facts={"options": options, "threads": 1})


def time_steps(contestant: str, options: dict[str, Any], toy: bool) -> dict[str, float]:
    """CPU and wall seconds of one optimizer step, the mean over those after the warm-up."""
    from benchmarks.contestants.job import Job
    from benchmarks.documents import DocumentSet, make_documents
    from benchmarks.meters import StepClock

    warmup, steps = (1, 3) if toy else (WARMUP_STEPS, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        model_folder = build_random_model(DEEP_AND_NARROW, Path(folder) / "model")
        row = DocumentSet("row", TOKENS, TOKENS, 0.0)
        job = Job(
            model_folder=model_folder,
            method="lora",
            documents=make_documents(row, DEEP_AND_NARROW.vocabulary, steps * TOKENS),
            max_length=TOKENS,
            steps=steps,
            tokens_per_step=TOKENS,
            work_folder=Path(folder),
            options=options,
        )
        clock = StepClock(warmup, steps, lambda: 0)
        CONTESTANTS[contestant].build(job).train([clock])
    timed = steps - warmup
    return {"cpu": clock.cpu_seconds / timed, "wall": clock.wall_seconds / timed}


if __name__ == "__main__":
    print(json.dumps(time_steps(*json.loads(sys.argv[1]))))
