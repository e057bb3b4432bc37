"""Measure the merge of an adapter into its base, as a whole process that reads and writes files.

The base is a random Llama in bf16, in three shards. The adapter has rank 16 on all linear layers.
lora-sft runs without its verification, because PEFT has no verification. `merge_large` and the toy
size also run it with verification, in separate columns. The facts show that both do the same work:
they hold the largest difference between the two outputs, and between an output and the base. The
limit is a copy of the base's files, which are in the page cache.
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
    make_process_sample,
    run_on_one_thread,
    run_worker,
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
    """Make a base and an adapter, merge them with each contestant, and compare the outputs."""
    if toy:
        yield from measure_size("toy", 1, verified=True)
    else:
        yield from measure_size("0.32 B", REPEATS)


def measure_size(
    size: str, repeats: int, *, verified: bool = False, with_peft: bool = True
) -> Iterator[Case]:
    """Measure one size of base.

    Args:
        verified: Run lora-sft with verification too.
        with_peft: Run PEFT too, and compare the outputs.
    """
    subject = SUBJECTS[size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = run_worker("merge_worker", "make", size, folder)
        contestants = _list_contestants(subject, folder, verified=verified, with_peft=with_peft)
        cases = list(take_turns(contestants, repeats))
        agreement = _compare(cases, folder) if with_peft else {}
    for case in cases:
        compared = {} if case.role == "limit" else agreement
        yield replace(case, facts={**case.facts, **facts, **compared})


def _list_contestants(
    subject: str, folder: Path, *, verified: bool, with_peft: bool
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
    if with_peft:
        contestants.insert(1, make("PEFT", "peer", peer, peft))
    return tuple(contestants)


def _make_verified_run(
    subject: str,
    command: Sequence[object],
    run: Callable[[], Mapping[str, Sample]],
    output: Path,
) -> Callable[[], Mapping[str, Sample]]:
    """Return a function that merges with verification, then without: both make one sample."""

    def run_both() -> Mapping[str, Sample]:
        shutil.rmtree(output, ignore_errors=True)
        verified = run_on_one_thread(command)
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
    """Return a function that removes the old output and merges. The last output stays on disk."""

    def run() -> Mapping[str, Sample]:
        shutil.rmtree(output, ignore_errors=True)
        usage = run_on_one_thread(command)
        return {subject: make_process_sample(usage, output_bytes=_count_weight_bytes(output))}

    return run


def _count_weight_bytes(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    if not sizes:
        raise CouldNotRun(f"the merge wrote no weights to {folder.name}")
    return sum(sizes)


def _compare(cases: Sequence[Case], folder: Path) -> Mapping[str, Any]:
    """Compare the outputs of lora-sft and PEFT. Return {} if one of the merges failed."""
    if any(case.status != "measured" for case in cases):
        return {}
    answer: Mapping[str, Any] = run_worker(
        "merge_worker", "compare", folder / "lora-sft", folder / "peft", folder / "base"
    )
    return answer
