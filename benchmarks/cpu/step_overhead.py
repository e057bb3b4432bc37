"""Measure the trainer's own cost: the CPU time of an optimizer step on a deep and narrow model.

The model has 32 layers of width 64 and 224 adapted modules. A step trains one row of 16 tokens. So
the arithmetic takes almost no time, and the measured time is that of the Python code around it. A
GPU waits for this code if its own work is shorter. The limit is the plain PEFT loop, which has no
trainer.
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

# All do the same work: float32, no recomputation, one row per step.
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
    """Measure the contestants in turns, each in a separate process."""
    found: dict[str, Case] = {}
    for _ in range(1 if toy else REPEATS):
        for name, (role, options) in ENTRIES.items():
            case = _measure_once(name, role, options, toy)
            found[name] = found[name].joined(case) if name in found else case
    yield from found.values()


def _measure_once(name: str, role: Role, options: dict[str, Any], toy: bool) -> Case:
    arguments = json.dumps([name, options, toy])
    usage = run_measured(
        [sys.executable, "-m", "benchmarks.cpu.step_overhead", arguments],
        environment=ONE_THREAD,
    )
    if usage.exit_code:
        return Case(SUBJECT, name, role, status="failed", reason=usage.last_lines)
    seconds = json.loads(usage.stdout.splitlines()[-1])
    measured = {
        "cpu_seconds": Measurement("CPU s", (seconds["cpu"],)),
        "wall_seconds": Measurement("s", (seconds["wall"],)),
        "peak_rss_bytes": Measurement("B", (float(usage.peak_rss_bytes),)),
    }
    return Case(SUBJECT, name, role, measured, facts={"options": options, "threads": 1})


def time_steps(contestant: str, options: dict[str, Any], toy: bool) -> dict[str, float]:
    """Return the mean CPU and wall seconds of an optimizer step after the warm-up."""
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
