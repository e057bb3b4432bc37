"""Run contestants in turns and make Cases of their samples.

In turns (A B C, A B C, ...), because a machine's speed drifts: whatever happens to it then happens
to all. Every contestant has one thread, so that CPU seconds compare.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.processes import Usage, run_measured
from benchmarks.record import Case, Measurement, Role

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LORA_SFT_PROCESSES": "1",
}
QUANTITIES: Mapping[str, tuple[str, Literal["lower", "higher"]]] = {
    "cpu_seconds": ("CPU s", "lower"),
    "wall_seconds": ("s", "lower"),
    "peak_rss_bytes": ("B", "lower"),
    "verified_cpu_seconds": ("CPU s", "lower"),
    "verified_wall_seconds": ("s", "lower"),
    "verified_peak_rss_bytes": ("B", "lower"),
    "eight_rows_cpu_seconds": ("CPU s", "lower"),
    "tokens_per_cpu_second": ("tok/CPU s", "higher"),
    "utilisation": ("share", "higher"),
    "cpu_seconds_per_100k_documents": ("CPU s", "lower"),
    "rows_per_second": ("rows/s", "higher"),
    "second_preparation_seconds": ("s", "lower"),
    "packing_seconds": ("s", "lower"),
    "rate_of_bare_tokenizer": ("share", "higher"),
    "read_share": ("share", "lower"),
    "hash_share": ("share", "lower"),
    "convert_share": ("share", "lower"),
    "render_share": ("share", "lower"),
    "check_share": ("share", "lower"),
    "tokenise_share": ("share", "higher"),
    "label_share": ("share", "lower"),
    "write_share": ("share", "lower"),
    "other_share": ("share", "lower"),
}
LIMIT_SECONDS = 900


class CouldNotRun(Exception):
    """A contestant ended otherwise than it must; the text is the reason of a failed Case."""


@dataclass(frozen=True)
class Sample:
    """One contestant doing one thing once: numbers by quantity, and what explains them."""

    values: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """Who does which subjects, and how: `run` does all of them once and gives a sample for each.

    `skipped` says, by subject, why this contestant has no number there.
    """

    name: str
    role: Role
    subjects: tuple[str, ...]
    run: Callable[[], Mapping[str, Sample]] = dict
    skipped: Mapping[str, str] = field(default_factory=dict)


def take_turns(contestants: Sequence[Contestant], repeats: int) -> Iterator[Case]:
    """Every contestant once, then every one again; a Case for each of their subjects."""
    samples: dict[tuple[str, str], list[Sample]] = {}
    failures: dict[str, str] = {}
    for _ in range(repeats):
        for contestant in contestants:
            if contestant.name in failures or not contestant.subjects:
                continue
            try:
                done = contestant.run()
            except CouldNotRun as error:
                failures[contestant.name] = str(error)
                continue
            for subject, sample in done.items():
                samples.setdefault((subject, contestant.name), []).append(sample)
    for contestant in contestants:
        for subject in contestant.subjects:
            if contestant.name in failures:
                reason = failures[contestant.name]
                yield Case(subject, contestant.name, contestant.role, {}, "failed", reason)
            else:
                yield make_case(subject, contestant, samples[subject, contestant.name])
        for subject, reason in contestant.skipped.items():
            yield Case(subject, contestant.name, contestant.role, {}, "skipped", reason)


def make_case(subject: str, contestant: Contestant, samples: Sequence[Sample]) -> Case:
    """The Case of all samples; the facts are the last one's."""
    measurements = {
        name: Measurement(unit, tuple(each.values[name] for each in samples), better)
        for name, (unit, better) in QUANTITIES.items()
        if all(name in each.values for each in samples)
    }
    facts = {"threads": 1, **samples[-1].facts}
    return Case(subject, contestant.name, contestant.role, measurements, facts=facts)


def run_whole(command: Sequence[object], *, exit_code: int = 0) -> Usage:
    """Run a command with one thread.

    Raises: CouldNotRun where it ends with another exit code.
    """
    usage = run_measured(command, environment=ONE_THREAD, timeout_seconds=LIMIT_SECONDS)
    if usage.exit_code != exit_code:
        raise CouldNotRun(f"exit code {usage.exit_code}, not {exit_code}: {usage.last_words}")
    return usage


def sample_whole(usage: Usage, **facts: Any) -> Sample:
    """The cost of a whole process, start and end included."""
    values = {
        "cpu_seconds": usage.cpu_seconds,
        "wall_seconds": usage.wall_seconds,
        "peak_rss_bytes": float(usage.peak_rss_bytes),
    }
    return Sample(values, facts)


def run_worker(worker: str, *arguments: object) -> Any:
    """Run one of this package's workers with one thread; what its last line says, as JSON.

    Raises: CouldNotRun where it fails.
    """
    usage = run_whole([sys.executable, "-m", f"benchmarks.cpu.{worker}", *arguments])
    return json.loads(usage.stdout.splitlines()[-1])


def run_sampling_worker(worker: str, *arguments: object) -> dict[str, Sample]:
    """Run a worker that measures inside itself: `{subject: {"values": ..., "facts": ...}}`."""
    answer = run_worker(worker, *arguments)
    return {subject: Sample(**fields) for subject, fields in answer.items()}
