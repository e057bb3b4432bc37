"""Measure what the budget of the chat template adds to the CPU time of data preparation.

The rows and the settings are those of `data_preparation`, on one thread. One process prepares the
rows several times, in turns with the budget and without it. Without it, templates are compiled as
before there was a budget. The result is the median of the ratios of two preparations that follow
each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.cpu.data_folder import (
    CHATS,
    QUESTIONS,
    TOKENIZER,
    find_data_folder,
    write_row_files,
)
from benchmarks.cpu.data_preparation import NO_DATA, OURS, REWRITTEN, find_training_template
from benchmarks.cpu.sampling import Contestant, run_sampling_worker, take_turns
from benchmarks.record import Case

MEASURE = "template_budget"
REPEATS = 3


def measure(toy: bool) -> Iterator[Case]:
    """Measure lora-sft. Without the data folder, all cases are skipped with that reason."""
    data = find_data_folder()
    if data is None:
        for subject in (CHATS, QUESTIONS, REWRITTEN):
            yield Case(subject, OURS, "ours", status="skipped", reason=NO_DATA)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = write_row_files(data, Path(folder), toy)
        files[REWRITTEN] = files[CHATS]
        subjects = [f"{subject}={path}" for subject, path in files.items()]
        run = partial(
            run_sampling_worker,
            "data_preparation_worker",
            "budget",
            data / TOKENIZER,
            find_training_template(),
            *subjects,
        )
        yield from take_turns((Contestant(OURS, "ours", tuple(files), run),), 1 if toy else REPEATS)
