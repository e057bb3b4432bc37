"""What it costs to merge an adapter into its base: whole processes, from files to files.

The base is a random Llama in bf16, in three shards; the adapter is r=16 on every linear layer.
lora-sft is run without its verification, which PEFT has none of; `merge_large` (and the toy) runs
it with verification too, in columns of their own. That both did the same work is in the facts: the
outputs are compared tensor by tensor, beside how far the adapter moved the base. The limit is a
copy of the base's files, page cache warm.
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

SUBJECTS = {
    "0.32 B": "Llama of 0.32 B, bf16, r=16 on all linear layers",
    "1.2 B": "Llama of 1.2 B (tied), bf16, r=16 on all linear layers",
    "3.2 B": "Llama of 3.2 B (tied), bf16, r=16 on all linear layers",
    "toy": "toy Llama",
}
REPEATS = 3


def measure(toy: bool) -> Iterator[Case]:
    """Make base and adapter, merge them in turn, and compare what came of it."""
    if toy:
        yield from measure_size("toy", 1, verified=True)
    else:
        yield from measure_size("0.32 B", REPEATS)


def measure_size(
    size: str, repeats: int, *, verified: bool = False, alone: bool = False
) -> Iterator[Case]:
    """One size of base; `verified`: ours with verification too; `alone`: only ours and the copy."""
    subject = SUBJECTS[size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = run_worker("merge_worker", "make", size, folder)
        contestants = _list_contestants(subject, folder, verified=verified, alone=alone)
        cases = list(take_turns(contestants, repeats))
        agreement = {} if alone else _compare(cases, folder)
    for case in cases:
        compared = {} if case.role == "limit" else agreement
        yield replace(case, facts={**case.facts, **facts, **compared})


def _list_contestants(
    subject: str, folder: Path, *, verified: bool, alone: bool
) -> Sequence[Contestant]:
    base, adapter = folder / "base", folder / "adapter"
    ours, peft, copy = folder / "lora-sft", folder / "peft", folder / "copy"
    lora_sft = [sys.executable, "-m", "lora_sft", "merge", adapter, ours, "--base", base]
    peer = [sys.executable, "-m", "benchmarks.cpu.merge_worker", "peft", base, adapter, peft]

    def make(name: str, role: Role, command: Sequence[object], output: Path) -> Contestant:
        return Contestant(name, role, (subject,), _make_run(subject, command, output))

    merge = [*lora_sft, "--verify", "none"]
    run = _make_run(subject, merge, ours)
    if verified:
        run = _make_verified_run(subject, lora_sft, run, ours)
    contestants = [
        Contestant("lora-sft", "ours", (subject,), run),
        make("copy of the base", "limit", ["cp", "-R", base, copy], copy),
    ]
    if not alone:
        contestants.insert(1, make("PEFT", "peer", peer, peft))
    return tuple(contestants)


def _make_verified_run(
    subject: str,
    command: Sequence[object],
    run: Callable[[], Mapping[str, Sample]],
    output: Path,
) -> Callable[[], Mapping[str, Sample]]:
    """The merge as it is by default, verified, and then without: both in one sample."""

    def run_both() -> Mapping[str, Sample]:
        shutil.rmtree(output, ignore_errors=True)
        verified = run_whole(command)
        sample = run()[subject]
        more = {
            "verified_cpu_seconds": verified.cpu_seconds,
            "verified_wall_seconds": verified.wall_seconds,
            "verified_peak_rss_bytes": float(verified.peak_rss_bytes),
        }
        return {subject: replace(sample, values={**sample.values, **more})}

    return run_both


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
