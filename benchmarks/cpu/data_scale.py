"""Measure data preparation with 10 thousand, 100 thousand and a million rows.

It shows whether memory grows with the rows, and whether a second preparation is fast. The rows are
short questions and answers, with the tokenizer of the quickstart's base, so that a million rows
take only minutes. They are prepared on all cores, then found again in the cache, then packed into
rows of 2,048 tokens. Each size runs in a separate process. The peak memory is that of this process.
The processes that it forks are not counted: their memory is bounded by the same batches.
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
    """Measure lora-sft once at each size. The sizes are compared with each other."""
    for size in TOY_SIZES if toy else SIZES:
        usage = run_measured(
            [sys.executable, "-m", "benchmarks.cpu.data_scale_worker", size],
            timeout_seconds=LIMIT_SECONDS,
        )
        subject = f"{size:,} rows"
        if usage.exit_code != 0:
            yield Case(subject, OURS, "ours", status="failed", reason=usage.last_lines)
            continue
        answer = json.loads(usage.stdout.splitlines()[-1])
        measurements = {
            name: Measurement(unit, (answer["values"][name],), better)
            for name, (unit, better) in QUANTITIES.items()
            if name in answer["values"]
        }
        yield Case(subject, OURS, "ours", measurements, facts=answer["facts"])
