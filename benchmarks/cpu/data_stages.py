"""Where the time of lora-sft's data preparation goes: reading, rendering, tokenising, ...

The rows and settings are those of `data_preparation`; one process, one thread. "rate of bare
tokenizer" is how fast the whole is beside the tokenizer alone on the same texts, which ran just
before and just after it in the same process.
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

MEASURE = "data_stages"
REPEATS = 5


def measure(toy: bool) -> Iterator[Case]:
    """lora-sft alone; skipped, with its reason, where the data folder is missing."""
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
            "stages",
            data / TOKENIZER,
            find_training_template(),
            *subjects,
        )
        yield from take_turns((Contestant(OURS, "ours", tuple(files), run),), 1 if toy else REPEATS)
