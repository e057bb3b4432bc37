"""Measure the tokens per second of LoRA training, for all contestants in the same run.

The models have real shapes and random weights. In each document 40 % of the tokens are learned. A
hook on the embedding counts the non-padding tokens of the steps after the warm-up. The same process
measures the rate of a bfloat16 matrix product, and the training's rate is given as a share of it.
So the share does not depend on a datasheet. The gates of benchmarks/gates.py check every run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.contestants import (
    CONTESTANTS,
    LORA_SFT,
    PLAIN_LOOP,
    TRL_DEFAULT,
    TRL_TUNED,
    UNSLOTH,
    Contestant,
)
from benchmarks.contestants.job import LORA_RANK, Job
from benchmarks.documents import DOCUMENT_SETS, Documents, make_documents
from benchmarks.flops import count_flops_per_token
from benchmarks.gates import (
    REFERENCE,
    judge_record,
    measure_document_isolation,
    measure_reference_losses,
)
from benchmarks.gpu.ceilings import measure_matmul_rate
from benchmarks.gpu.lane import Place, Scale, Task
from benchmarks.meters import StepClock, TokenMeter, read_peak_memory, reset_peak_memory
from benchmarks.record import Case, Measurement, read_environment
from benchmarks.shapes import SHAPES, ModelShape, build_random_model

MEASURE = "throughput"

# The settings among which the fastest is chosen for tuned TRL. `rows`: packed rows per micro-batch.
SWEEP = [
    {"rows": rows, "activation_checkpointing": checkpointing}
    for checkpointing in (False, True)
    for rows in (1, 2, 4, 8)
]
LARGEST_STEP_ROWS = 16  # lora-sft's default: 16 packed rows, each as long as the longest document
SWEEP_STEPS = 5
SWEEP_WARMUP_STEPS = 2


@dataclass(frozen=True)
class Subject:
    """A training task: a model shape, a method ("lora" or "qlora") and a set of documents."""

    shape: str
    method: str
    documents: str

    @property
    def name(self) -> str:
        return f"{self.shape}, {self.method}, {self.documents}"

    @classmethod
    def parse(cls, name: str) -> Subject:
        """Return the subject with this name."""
        shape, method, documents = name.split(", ")
        return cls(shape, method, documents)


ALL = (LORA_SFT, TRL_DEFAULT, TRL_TUNED, PLAIN_LOOP, UNSLOTH)
FIRST = (Subject("Llama-3.2-1B", "lora", "chat"), Subject("Llama-3.1-8B", "lora", "chat"))
LATER = (
    Subject("Llama-3.1-8B", "qlora", "chat"),
    Subject("Llama-3.1-8B", "lora", "dense"),
    Subject("Llama-3.2-1B", "lora", "short"),
    Subject("Qwen2.5-7B", "lora", "chat"),
)
TOY_SUBJECTS = (Subject("toy", "lora", "toy"), Subject("toy", "qlora", "toy"))

judge = judge_record


def list_tasks(scale: Scale) -> Iterator[Task]:
    """Yield tasks for all contestants: first the main subjects in rounds, then the others."""
    if scale.is_toy:
        yield from _list_round(TOY_SUBJECTS[:1], 0)
        yield from _list_round(TOY_SUBJECTS[1:], 0, (LORA_SFT,))
        return
    for repeat in range(scale.repeats):
        yield from _list_round(FIRST, repeat)
    for subject in LATER:
        for repeat in range(scale.repeats):
            yield from _list_round((subject,), repeat)


def _list_round(
    subjects: tuple[Subject, ...], repeat: int, contestants: tuple[Contestant, ...] = ALL
) -> Iterator[Task]:
    for subject in subjects:
        for each in contestants:
            yield Task(
                subject.name,
                each.name,
                each.role,
                repeat,
                seconds=300 if each is TRL_TUNED and repeat == 0 else 180,
                needs_cuda=each.needs_cuda,
                tree=each.tree,
            )
        if repeat == 0:
            yield Task(subject.name, REFERENCE, "reference", seconds=150)


def perform(task: Task, place: Place) -> Case:
    """Measure one contestant once, or the float32 losses with which the gates compare step 1."""
    subject = Subject.parse(task.subject)
    shape = SHAPES[subject.shape]
    build_random_model(shape, place.models / shape.name)
    documents = make_subject_documents(subject, place.scale)
    if task.contestant == REFERENCE:
        wanted = _find_first_step_documents(place, task.subject)
        folder, method = place.models / shape.name, subject.method
        facts = measure_reference_losses(folder, method, documents, wanted)
        return Case(task.subject, REFERENCE, "reference", facts=facts)
    contestant = CONTESTANTS[task.contestant]
    job = make_job(subject, documents, place, task.options)
    options, facts = dict(task.options), {}
    if contestant is TRL_TUNED:
        options, facts = _find_best_options(task, contestant, job, place)
    job = make_job(subject, documents, place, options)
    measured, more = measure_run(contestant, job, shape, place.scale)
    return Case(task.subject, task.contestant, task.role, measured, facts={**facts, **more})


def make_subject_documents(subject: Subject, scale: Scale) -> Documents:
    """Make so many documents for a subject that no contestant needs a document twice."""
    document_set = DOCUMENT_SETS[subject.documents]
    total = scale.steps * max(scale.tokens_per_step, LARGEST_STEP_ROWS * document_set.cap_tokens)
    return make_documents(document_set, SHAPES[subject.shape].vocabulary, total)


def make_job(
    subject: Subject, documents: Documents, place: Place, options: Mapping[str, Any]
) -> Job:
    """Make the job for a contestant. Only the options differ between contestants."""
    return Job(
        model_folder=place.models / subject.shape,
        method=subject.method,
        documents=documents,
        max_length=DOCUMENT_SETS[subject.documents].cap_tokens,
        steps=place.scale.steps,
        tokens_per_step=place.scale.tokens_per_step,
        work_folder=place.work_folder,
        options=options,
    )


def measure_run(
    contestant: Contestant, job: Job, shape: ModelShape, scale: Scale
) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """Train once. Return the measurements, and the facts that the gates need."""
    reset_peak_memory()
    measured, facts = _train_once(contestant, job, scale.warmup_steps)
    _free_memory()  # the model is no longer used; free it before the matrix product is timed
    ceiling = measure_matmul_rate(toy=scale.is_toy)
    needed = count_flops_per_token(shape, job.documents.mean_attention_span, LORA_RANK)
    flops = measured["tokens_per_second"].median * needed
    measured |= {
        "needed_flops_per_second": Measurement("FLOP/s", (flops,), "higher"),
        "matmul_flops_per_second": Measurement("FLOP/s", (ceiling,), "higher"),
        "share_of_matmul_rate": Measurement("share", (flops / ceiling,), "higher"),
    }
    return measured, facts


def _train_once(
    contestant: Contestant, job: Job, warmup_steps: int
) -> tuple[dict[str, Measurement], dict[str, Any]]:
    documents = job.documents
    run = contestant.build(job)
    meter = TokenMeter(run.model)
    clock = StepClock(warmup_steps, job.steps, lambda: len(meter.batches))
    first_loss = run.train([clock])
    memory = read_peak_memory()
    meter.remove()
    first, start, end = (clock.marks[name] for name in ("first step", "warm", "end"))
    tokens = meter.count_tokens(start, end)
    learned = sum(map(documents.count_learned, meter.find_documents(documents, start, end)))
    first_documents = meter.find_documents(documents, 0, first)
    facts = {
        "options": dict(job.options),
        "timed_steps": job.steps - warmup_steps,
        "timed_seconds": clock.wall_seconds,
        "real_token_share": tokens / meter.count_slots(start, end),
        "trained_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "first_step_loss": first_loss,
        "first_step_documents": first_documents,
        "first_step_learned_tokens": sum(map(documents.count_learned, first_documents)),
        **_count_documents(meter, documents),
        **measure_document_isolation(run, documents),
    }
    rates = {"tokens_per_second": tokens, "learned_tokens_per_second": learned}
    measured = {
        name: Measurement("tok/s", (count / clock.wall_seconds,), "higher")
        for name, count in rates.items()
    }
    measured |= {name: Measurement("B", (float(value),)) for name, value in memory.items()}
    return measured, facts


def _count_documents(meter: TokenMeter, documents: Documents) -> dict[str, int]:
    """Count the documents and tokens of the whole run, for the gate "once"."""
    seen = meter.find_documents(documents, 0, len(meter.batches))
    return {
        "documents_seen": len(seen),
        "documents_seen_twice": len(seen) - len(set(seen)),
        "tokens_seen": meter.count_tokens(0, len(meter.batches)),
        "tokens_of_documents_seen": sum(len(documents.ids[number]) for number in seen),
    }


def _find_best_options(
    task: Task, contestant: Contestant, job: Job, place: Place
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fastest settings for tuned TRL, and the facts of the search.

    The search runs once per environment. Later repetitions take its result from the record.
    """
    known = place.record.cases.get((task.subject, task.contestant))
    here = read_environment().key
    if known is not None and known.environment == here and "sweep" in known.facts:
        return dict(known.facts["options"]), {"sweep": known.facts["sweep"]}
    tried = []
    for options in SWEEP[:1] if place.scale.is_toy else SWEEP:
        if options["rows"] * job.max_length > max(job.tokens_per_step, job.max_length):
            continue
        tried.append({**options, **_try_options(contestant, job, options)})
    worked = [each for each in tried if "tokens_per_second" in each]
    if not worked:
        raise RuntimeError(f"all settings of the search failed: {tried}")
    best = max(worked, key=lambda each: each["tokens_per_second"])
    chosen = {name: best[name] for name in ("rows", "activation_checkpointing")}
    return chosen, {"sweep": tried}


def _try_options(contestant: Contestant, job: Job, options: dict[str, Any]) -> dict[str, Any]:
    short = Job(**{**job.__dict__, "options": options, "steps": SWEEP_STEPS})
    try:
        measured, _ = _train_once(contestant, short, SWEEP_WARMUP_STEPS)
        return {"tokens_per_second": measured["tokens_per_second"].median}
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    finally:
        _free_memory()


def _free_memory() -> None:
    gc.collect()
    reset_peak_memory()


def _find_first_step_documents(place: Place, subject: str) -> list[int]:
    cases = [case for case in place.record.cases.values() if case.subject == subject]
    wanted = {n for case in cases for n in case.facts.get("first_step_documents", ())}
    return sorted(wanted)
