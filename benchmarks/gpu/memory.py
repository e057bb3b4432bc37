"""Measure the peak memory of training steps, by tokens per micro-batch and recomputation.

Each run trains three steps of one row with exactly T tokens. The optimizer's state exists after the
first step. "Allocated" is the memory of torch's tensors. "Reserved" is the memory that torch took
from the driver. "Driver" is all memory in use on the device, with the CUDA context.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.contestants import CONTESTANTS, LORA_SFT, TRL_TUNED, Contestant
from benchmarks.contestants.job import Job
from benchmarks.documents import DocumentSet, make_documents
from benchmarks.gpu.lane import Place, Scale, Task
from benchmarks.meters import read_peak_memory, reset_peak_memory
from benchmarks.record import Case, Measurement
from benchmarks.shapes import SHAPES, build_random_model

MEASURE = "memory"

STEPS = 3
SHAPES_MEASURED = ("Llama-3.2-1B", "Llama-3.1-8B", "Qwen2.5-7B")
TOKENS = (2048, 8192, 16384)


def list_tasks(scale: Scale) -> Iterator[Task]:
    """Yield one task per shape, method, length and recomputation, for lora-sft and for TRL."""
    shapes = ("toy",) if scale.is_toy else SHAPES_MEASURED
    lengths = (64,) if scale.is_toy else TOKENS
    for shape in shapes:
        for method in ("qlora", "lora"):
            for tokens in lengths:
                for recomputed in (True,) if scale.is_toy else (True, False):
                    for each in (LORA_SFT, TRL_TUNED):
                        yield _make_task(each, shape, method, tokens, recomputed)


def _make_task(
    contestant: Contestant, shape: str, method: str, tokens: int, recomputed: bool
) -> Task:
    recomputation = "recomputed" if recomputed else "kept"
    return Task(
        f"{shape}, {method}, {tokens} tokens, activations {recomputation}",
        contestant.name,
        contestant.role,
        seconds=90,
        options={"tokens": tokens, "shape": shape, "method": method, "recomputed": recomputed},
    )


def perform(task: Task, place: Place) -> Case:
    """Train three steps and return the memory peaks."""
    shape = SHAPES[task.options["shape"]]
    tokens = task.options["tokens"]
    contestant = CONTESTANTS[task.contestant]
    build_random_model(shape, place.models / shape.name)
    row = DocumentSet("row", tokens, tokens, 0.0)
    job = Job(
        model_folder=place.models / shape.name,
        method=task.options["method"],
        documents=make_documents(row, shape.vocabulary, STEPS * tokens),
        max_length=tokens,
        steps=STEPS,
        tokens_per_step=tokens,
        work_folder=place.work_folder,
        options=_make_options(contestant, task.options["recomputed"]),
    )
    reset_peak_memory()
    run = contestant.build(job)
    loaded = read_peak_memory()
    run.train([])
    peaks = read_peak_memory()
    measured = {name: Measurement("B", (float(value),)) for name, value in peaks.items()}
    return Case(task.subject, task.contestant, task.role, measured, facts={"after_load": loaded})


def _make_options(contestant: Contestant, recomputed: bool) -> dict[str, Any]:
    if contestant is TRL_TUNED:
        return {"rows": 1, "activation_checkpointing": recomputed}
    return {
        "train.activation_checkpointing": "true" if recomputed else "false",
        "train.per_device_train_batch_size": 1,
        "train.global_batch_size": 1,
    }
