"""What each setting of lora-sft is worth: its defaults with one thing changed at a time.

A setting is an override of the recipe, so whatever a user may write can be a line here.
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

SWITCHES: tuple[dict[str, str], ...] = (
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
TOY_SWITCHES = (*SWITCHES[:2], {"train.optim": "paged_adamw_8bit"})
CUDA_ONLY = ("train.torch_compile", "paged_adamw_8bit")


def list_tasks(scale: Scale) -> Iterator[Task]:
    """One task a switch and repeat; the small model first."""
    subjects = TOY_SUBJECTS[:1] if scale.is_toy else FIRST
    switches = TOY_SWITCHES if scale.is_toy else SWITCHES
    for subject in subjects:
        for repeat in range(scale.repeats):
            for switch in switches:
                yield Task(
                    subject.name,
                    name_switch(switch),
                    "ours" if not switch else "peer",
                    repeat,
                    seconds=180,
                    needs_cuda=any(word in name_switch(switch) for word in CUDA_ONLY),
                    options=switch,
                )


def name_switch(switch: dict[str, str]) -> str:
    """`lora-sft` for the defaults, else what is changed."""
    return " ".join(f"{name}={value}" for name, value in switch.items()) or LORA_SFT.name


def perform(task: Task, place: Place) -> Case:
    """Measure lora-sft with one switch."""
    subject = Subject.parse(task.subject)
    shape = SHAPES[subject.shape]
    build_random_model(shape, place.models / shape.name)
    documents = make_subject_documents(subject, place.scale)
    job = make_job(subject, documents, place, task.options)
    measured, facts = measure_run(LORA_SFT, job, shape, place.scale)
    return Case(task.subject, task.contestant, task.role, measured, facts=facts)
