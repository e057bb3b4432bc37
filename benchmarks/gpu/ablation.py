"""Measure lora-sft with its defaults and with one setting changed at a time.

A changed setting is an override of the recipe, so any recipe field can be measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contestants import LORA_SFT
from benchmarks.gpu.lane import Place, Scale, Task
from benchmarks.gpu.throughput import (
    FIRST,
    TOY_SUBJECTS,
    Subject,
    make_job,
    make_subject_documents,
    measure_run,
)
from benchmarks.record import Case
from benchmarks.shapes import SHAPES, build_random_model

MEASURE = "ablation"

CHANGES: tuple[dict[str, str], ...] = (
    {},
    {"train.activation_checkpointing": "false"},
    {"data.packing": "false"},
    {"train.per_device_train_batch_size": "4"},
    {"train.per_device_train_batch_size": "16"},
    {"adapter.lora_dropout": "0.05"},
    {"train.bf16": "false"},
    {"model.attn_implementation": "eager"},
    {"train.optim": "adamw_torch"},
    {"train.optim": "paged_adamw_8bit"},
    {"train.torch_compile": "true"},
    {"quantization": "nf4"},
)
TOY_CHANGES = (*CHANGES[:2], {"train.optim": "paged_adamw_8bit"})
CUDA_ONLY = ("train.torch_compile", "paged_adamw_8bit")


def list_tasks(scale: Scale) -> Iterator[Task]:
    """Yield one task per changed setting and repetition, the small model first."""
    subjects = TOY_SUBJECTS[:1] if scale.is_toy else FIRST
    changes = TOY_CHANGES if scale.is_toy else CHANGES
    for subject in subjects:
        for repeat in range(scale.repeats):
            for change in changes:
                yield Task(
                    subject.name,
                    name_change(change),
                    "ours" if not change else "peer",
                    repeat,
                    seconds=180,
                    needs_cuda=any(word in name_change(change) for word in CUDA_ONLY),
                    options=change,
                )


def name_change(change: dict[str, str]) -> str:
    """Return the overrides as text, or "lora-sft" if nothing is changed."""
    return " ".join(f"{name}={value}" for name, value in change.items()) or LORA_SFT.name


def perform(task: Task, place: Place) -> Case:
    """Measure lora-sft with one setting changed."""
    subject = Subject.parse(task.subject)
    shape = SHAPES[subject.shape]
    build_random_model(shape, place.models / shape.name)
    documents = make_subject_documents(subject, place.scale)
    job = make_job(subject, documents, place, task.options)
    measured, facts = measure_run(LORA_SFT, job, shape, place.scale)
    return Case(task.subject, task.contestant, task.role, measured, facts=facts)
