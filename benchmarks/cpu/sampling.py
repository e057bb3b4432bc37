"""Run the contestants in turns and make cases from their samples.

They run in turns (A B C, A B C, ...) because a machine's speed changes over time. So a slow period
affects all of them. Every contestant uses one thread, so that CPU seconds can be compared.
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
    "ratio_to_no_budget": ("share", "lower"),
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
    """A contestant failed. The text becomes the reason of its failed case."""


@dataclass(frozen=True)
class Sample:
    """The result of one run of one contestant for one subject.

    Attributes:
        values: The measured number of each quantity.
        facts: Other information that explains the numbers.
    """

    values: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """One contestant of a measure, and its subjects.

    Attributes:
        run: Runs all subjects once and returns a sample for each.
        skipped: The subjects that this contestant cannot run, with the reasons.
    """

    name: str
    role: Role
    subjects: tuple[str, ...]
    run: Callable[[], Mapping[str, Sample]] = dict
    skipped: Mapping[str, str] = field(default_factory=dict)


def take_turns(contestants: Sequence[Contestant], repeats: int) -> Iterator[Case]:
    """Run all contestants `repeats` times in turns. Yield a case per contestant and subject."""
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
    """Make a case from all samples. Its facts are those of the last sample."""
    measurements = {
        name: Measurement(unit, tuple(each.values[name] for each in samples), better)
        for name, (unit, better) in QUANTITIES.items()
        if all(name in each.values for each in samples)
    }
    facts = {"threads": 1, **samples[-1].facts}
    return Case(subject, contestant.name, contestant.role, measurements, facts=facts)


def run_on_one_thread(command: Sequence[object], *, exit_code: int = 0) -> Usage:
    """Run a command on one thread and return its cost.

    Raises: CouldNotRun if its exit code is not `exit_code`.
    """
    usage = run_measured(command, environment=ONE_THREAD, timeout_seconds=LIMIT_SECONDS)
    if usage.exit_code != exit_code:
        raise CouldNotRun(f"exit code {usage.exit_code}, not {exit_code}: {usage.last_lines}")
    return usage


def make_process_sample(usage: Usage, **facts: Any) -> Sample:
    """Make a sample from the cost of a whole process, including its start and its end."""
    values = {
        "cpu_seconds": usage.cpu_seconds,
        "wall_seconds": usage.wall_seconds,
        "peak_rss_bytes": float(usage.peak_rss_bytes),
    }
    return Sample(values, facts)


def run_worker(worker: str, *arguments: object) -> Any:
    """Run a worker of this package on one thread. Return the JSON value of its last line.

    Raises: CouldNotRun if it fails.
    """
    usage = run_on_one_thread([sys.executable, "-m", f"benchmarks.cpu.{worker}", *arguments])
    return json.loads(usage.stdout.splitlines()[-1])


def run_sampling_worker(worker: str, *arguments: object) -> dict[str, Sample]:
    """Run a worker that measures itself. Return a sample for each subject that it prints.

    The worker prints `{subject: {"values": ..., "facts": ...}}`.
    """
    answer = run_worker(worker, *arguments)
    return {subject: Sample(**fields) for subject, fields in answer.items()}
