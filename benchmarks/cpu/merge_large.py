"""Measure the merge of models with 1.2 B and 3.2 B parameters.

`make bench` leaves it out, because it takes too long. Run `python -m benchmarks.cpu merge_large`.
The larger model is merged only by lora-sft, to show whether memory grows with the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cpu.merge import measure_size
from benchmarks.record import Case

MEASURE = "merge_large"

REPEATS = 3


def measure(toy: bool) -> Iterator[Case]:
    """Measure both sizes, or only the toy size."""
    yield from measure_size("toy" if toy else "1.2 B", 1 if toy else REPEATS, verified=True)
    if not toy:
        yield from measure_size("3.2 B", 1, with_peft=False)
