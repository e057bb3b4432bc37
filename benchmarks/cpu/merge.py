"""What it costs to merge an adapter into its base: whole processes, from files to files.

The base is a random Llama of 0.65 B parameters in bf16, in three shards; the adapter is r=16 on
every linear layer, as PEFT writes it. lora-sft runs without its verification, which PEFT has none
of. That both did the same work is in the facts: the outputs are compared tensor by tensor, beside
how far the adapter moved the base. The limit is a copy of the base's files, page cache warm.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cpu.sampling import (
    Contestant,
    CouldNotRun,
    Sample,
    run_whole,
    run_worker,
    sample_whole,
    take_turns,
)
from benchmarks.record import Case, Role

MEASURE = "merge"

SUBJECTS = {False: "Llama of 0.65 B, bf16, r=16 on all linear layers", True: "toy Llama"}
REPEATS = 3


def measure(toy: bool) -> Iterator[Case]:
    """Make base and adapter, merge them in turn, and compare what came of it."""
    subject = SUBJECTS[toy]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = run_worker("merge_worker", "make", "toy" if toy else "full", folder)
        contestants = _list_contestants(subject, folder)
        cases = list(take_turns(contestants, 1 if toy else REPEATS))
        agreement = _compare(cases, folder)
    for case in cases:
        compared = {} if case.role == "limit" else agreement
        yield replace(case, facts={**case.facts, **size, **compared})


def _list_contestants(subject: str, folder: Path) -> Sequence[Contestant]:
    base, adapter = folder / "base", folder / "adapter"
    ours, peft, copy = folder / "lora-sft", folder / "peft", folder / "copy"
    lora_sft = [sys.executable, "-m", "lora_sft", "merge", adapter, ours, "--base", base]
    peer = [sys.executable, "-m", "benchmarks.cpu.merge_worker", "peft", base, adapter, peft]

    def make(name: str, role: Role, command: Sequence[object], output: Path) -> Contestant:
        return Contestant(name, role, (subject,), _make_run(subject, command, output))

    return (
        make("lora-sft", "ours", [*lora_sft, "--verify", "none"], ours),
        make("PEFT", "peer", peer, peft),
        make("copy of the base", "limit", ["cp", "-R", base, copy], copy),
    )


def _make_run(
    subject: str, command: Sequence[object], output: Path
) -> Callable[[], Mapping[str, Sample]]:
    """Run into an empty place; the last output stays, to be compared."""

    def run() -> Mapping[str, Sample]:
        shutil.rmtree(output, ignore_errors=True)
        usage = run_whole(command)
        return {subject: sample_whole(usage, output_bytes=_count_weight_bytes(output))}

    return run


def _count_weight_bytes(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    if not sizes:
        raise CouldNotRun(f"no weights were written to {folder.name}")
    return sum(sizes)


def _compare(cases: Sequence[Case], folder: Path) -> Mapping[str, Any]:
    """What tells whether lora-sft and PEFT made the same model; nothing where one failed."""
    if any(case.status != "measured" for case in cases):
        return {}
    answer: Mapping[str, Any] = run_worker(
        "merge_worker", "compare", folder / "lora-sft", folder / "peft", folder / "base"
    )
    return answer
