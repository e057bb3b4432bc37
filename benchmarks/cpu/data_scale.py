"""Does memory stay flat when rows grow from 10 thousand to a million, and is it quick again?

Short questions and answers, with the tokenizer of the quickstart's base, so that a million rows
take minutes. `load_or_build_corpus` prepares them on all cores, then finds them again; then they
are packed into rows of 2,048 tokens. Each size has a process of its own, and the peak is that
process's: those that it forks have their own, bounded by the same batches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from benchmarks.cpu.sampling import QUANTITIES
from benchmarks.processes import run_measured
from benchmarks.record import Case, Measurement

MEASURE = "data_scale"
SIZES, TOY_SIZES = (10_000, 100_000, 1_000_000), (50, 500)
OURS = "lora-sft"
LIMIT_SECONDS = 1_800


def measure(toy: bool) -> Iterator[Case]:
    """lora-sft at each size, once: it is the sizes that are compared."""
    for size in TOY_SIZES if toy else SIZES:
        usage = run_measured(
            [sys.executable, "-m", "benchmarks.cpu.data_scale_worker", size],
            timeout_seconds=LIMIT_SECONDS,
        )
        subject = f"{size:,} rows"
        if usage.exit_code != 0:
            yield Case(subject, OURS, "ours", status="failed", reason=usage.last_words)
            continue
        answer = json.loads(usage.stdout.splitlines()[-1])
        measurements = {
            name: Measurement(unit, (answer["values"][name],), better)
            for name, (unit, better) in QUANTITIES.items()
            if name in answer["values"]
        }
        yield Case(subject, OURS, "ours", measurements, facts=answer["facts"])
