"""Measure short commands: `--help`, `--version`, and `train` with a recipe that has faults.

Whole processes are measured, with the start of the interpreter. TRL cannot check a recipe before
its import. So lora-sft's check of a faulty recipe is compared with the import of TRL's trainer: a
training script needs that time before it can report an error.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.cpu.sampling import (
    Contestant,
    CouldNotRun,
    Sample,
    make_process_sample,
    run_on_one_thread,
    take_turns,
)
from benchmarks.record import Case

MEASURE = "start_up"

LORA_SFT = (sys.executable, "-m", "lora_sft")
TRL = (sys.executable, "-m", "trl.cli.main")
FLOOR = (sys.executable, "-c", "import argparse")
TRL_TRAINER = (sys.executable, "-c", "from trl import SFTTrainer")

HELP, TRAIN_HELP, VERSION = "--help", "train --help", "--version"
FAULTY = "recipe with five faults"
NUM_FAULTS = 5
EXIT_FAULTY = 2
FAULTY_RECIPE = """\
model:
  model_name_or_path: lora_sft://quickstart/base
train:
  learning_ratee: 2e-4
  warmup_ratio: 0.1
  assistant_only_loss: true
data:
  max_length: long
  datasets:
    - path: nowhere.jsonl
output_dir: run
"""
# In the last two, TRL imports everything. A sample then takes ten seconds, so there are fewer.
REPEATS = {HELP: 5, VERSION: 5, TRAIN_HELP: 3, FAULTY: 3}


def measure(toy: bool) -> Iterator[Case]:
    """Measure all subjects. With `toy`, leave out the slowest subject and repeat nothing."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "faulty.yaml"
        recipe.write_text(FAULTY_RECIPE)
        for subject, contestants in _list_contestants(recipe).items():
            if toy and subject == TRAIN_HELP:
                continue
            if not toy and subject in (HELP, VERSION):
                _warm_up(contestants)
            yield from take_turns(contestants, 1 if toy else REPEATS[subject])


def _list_contestants(recipe: Path) -> Mapping[str, Sequence[Contestant]]:
    no_version = {VERSION: "TRL's command line has no option --version"}
    return {
        HELP: (
            _ours(HELP, "--help"),
            _peer(HELP, "TRL", *TRL, "--help"),
            _floor(HELP),
        ),
        VERSION: (
            _ours(VERSION, "--version"),
            Contestant("TRL", "peer", (), skipped=no_version),
            _floor(VERSION),
        ),
        TRAIN_HELP: (
            _ours(TRAIN_HELP, "train", "--help"),
            _peer(TRAIN_HELP, "TRL", *TRL, "sft", "--help"),
            _floor(TRAIN_HELP),
        ),
        FAULTY: (
            Contestant("lora-sft", "ours", (FAULTY,), lambda: {FAULTY: _refuse(recipe)}),
            _peer(FAULTY, "import of TRL's trainer", *TRL_TRAINER),
            _floor(FAULTY),
        ),
    }


def _ours(subject: str, *arguments: str) -> Contestant:
    return Contestant("lora-sft", "ours", (subject,), _make_run(subject, [*LORA_SFT, *arguments]))


def _peer(subject: str, name: str, *command: str) -> Contestant:
    return Contestant(name, "peer", (subject,), _make_run(subject, command))


def _floor(subject: str) -> Contestant:
    return Contestant("Python and argparse", "limit", (subject,), _make_run(subject, FLOOR))


def _make_run(subject: str, command: Sequence[str]) -> Callable[[], Mapping[str, Sample]]:
    shown = " ".join(["python", *command[1:]])
    return lambda: {subject: make_process_sample(run_on_one_thread(command), command=shown)}


def _refuse(recipe: Path) -> Sample:
    """Run lora-sft with the faulty recipe.

    Raises: CouldNotRun if lora-sft does not report all faults together.
    """
    usage = run_on_one_thread([*LORA_SFT, "train", recipe], exit_code=EXIT_FAULTY)
    named = sum(line.startswith("error:") for line in usage.stderr.splitlines())
    if named != NUM_FAULTS:
        raise CouldNotRun(f"{named} of {NUM_FAULTS} faults were reported: {usage.last_lines}")
    return make_process_sample(
        usage, command="python -m lora_sft train faulty.yaml", faults_named=named
    )


def _warm_up(contestants: Sequence[Contestant]) -> None:
    """Run each contestant once. In such short commands, reading from disk would dominate."""
    for _ in take_turns(contestants, 1):
        pass
