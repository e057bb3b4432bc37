"""Attack training runs: kill them, damage and delete their files, and start them again.

    python tools/chaos.py --kills 10                         # print a JSON document
    python tools/chaos.py --kills 300 --jobs 2 --write-docs  # keep the record and its page

A tiny model is trained once without a fault, with one process and with two (gloo). Then each
attacked run trains the same recipe. It is killed at a random moment, at a call that changes a file
or at a system call of a save; or its files are damaged or deleted. After that the same command is
started again. `tools/attacks/outcomes.py` decides how the run ended: equal, refused or lost. The
exit code is 0 if no run was lost, else 1. The folders of lost runs are kept and named.

Most starts are forks of this process (`tools/attacks/starts.py`): they run the same `main` as the
program, but need not import the libraries again. The runs without a fault are started both ways,
and must have equal results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
# The libraries read these variables at import. One thread: a fork has no threads of its parent.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LORA_SFT_PROCESSES": "1"}

from tools.attacks import page  # noqa: E402
from tools.attacks.file_calls import FileCalls  # noqa: E402
from tools.attacks.kinds import Facts, Kind, Misbehaved, Victim, choose_kinds  # noqa: E402
from tools.attacks.outcomes import Outcome, Result, judge  # noqa: E402
from tools.attacks.starts import Command, Hook, Start, Stuck, import_libraries, start  # noqa: E402
from tools.attacks.system_calls import (  # noqa: E402
    NAMES,
    NotTraced,
    SystemCall,
    is_available,
    list_calls,
    stop_at_save,
    trace,
)

SAVED_STEPS = (2, 4, 6, 8)
TRACED_STEP = 6  # the first save that also deletes the oldest checkpoint
NUM_ROWS, NUM_HELD_OUT = 32, 4
RECIPE: dict[str, Any] = {
    "model": {"model_name_or_path": "base", "dtype": "float32"},
    "adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "data": {
        "datasets": [{"path": "train.jsonl"}],
        "validation": {"datasets": [{"path": "held_out.jsonl"}]},
        "max_length": 128,
        "packing": False,
    },
    "train": {
        "learning_rate": 1e-3,
        "max_steps": SAVED_STEPS[-1],
        "per_device_train_batch_size": 2,
        "global_batch_size": 4,
        "logging_steps": 1,
        "save_steps": SAVED_STEPS[0],
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        # The best checkpoint depends on every evaluation, so a stop signal skips none.
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "gradient_checkpointing": False,
    },
}


class Unprepared(Exception):
    """A run without a fault failed, or two ways to start it have different results."""


@dataclass(frozen=True)
class Attacked:
    """The record of one attacked run."""

    kind: str
    processes: int
    what: str
    outcome: str
    reason: str = ""


@dataclass
class Ground:
    """The folder of all runs, and what the runs without a fault have shown."""

    folder: Path
    recipe: Path
    facts: Facts
    results: dict[int, Result]

    def make_command(self, output: Path, kind: Kind) -> Command:
        """Return the command of a run."""
        cache = self.folder / "cache"
        return Command(self.recipe, output, cache, kind.processes, is_program=kind.is_program)


def write_recipe(folder: Path) -> Path:
    """Write the base model, the rows and the recipe, and return the path of the recipe."""
    from tests.tiny import make_tiny_llama

    make_tiny_llama(folder / "base")
    for name, first, count in (("train", 0, NUM_ROWS), ("held_out", NUM_ROWS, NUM_HELD_OUT)):
        rows = [_make_row(number) for number in range(first, first + count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE | {"output_dir": "unused"}, indent=1))  # JSON is YAML
    return recipe


def _make_row(number: int) -> dict[str, Any]:
    question = f"What is the name of box {number}? " + "x " * (number % 7)
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"It is box number {number}."},
        ]
    }


# --- the runs without a fault ---------------------------------------------------------------------


def prepare(folder: Path, kinds: list[Kind]) -> Ground:
    """Make the recipe, and run it without a fault in every way that the kinds need.

    Raises: Unprepared if a run fails or differs.
    """
    import_libraries()
    recipe = write_recipe(folder)
    results: dict[int, Result] = {}
    seconds: dict[tuple[int, bool], float] = {}
    ways = {(kind.processes, kind.is_program) for kind in kinds} | {(1, True), (1, False)}
    for processes, is_program in sorted(ways, key=lambda way: not way[1]):  # programs first
        command = Command(recipe, folder / f"whole-{processes}-{is_program}", folder / "cache")
        command = replace(command, processes=processes, is_program=is_program)
        result, seconds[processes, is_program] = run_whole(command)
        if results.setdefault(processes, result) != result:
            raise Unprepared(f"{processes} processes: a fork and the program differ")
    calls = list_file_calls(Command(recipe, folder / "listed", folder / "cache"))
    needs_trace = any(kind.attack.__name__ == "kill_at_system_call" for kind in kinds)
    traced = Command(recipe, folder / "traced", folder / "cache")
    system_calls = list_system_calls(traced) if needs_trace else []
    facts = Facts(seconds, calls, system_calls, SAVED_STEPS, TRACED_STEP)
    return Ground(folder, recipe, facts, results)


def run_whole(command: Command, hook: Hook | None = None) -> tuple[Result, float]:
    """Run a command without a fault, and return its result and its seconds."""
    began = time.monotonic()
    started = start(command, command.output.with_suffix(".log"), hook=hook)
    _check_ended(started)
    return Result.read(command.output), time.monotonic() - began


def _check_ended(started: Start) -> None:
    if started.wait() != 0:
        raise Unprepared(f"a start without a fault failed:\n{started.read_log()}")


def list_file_calls(command: Command) -> list[str]:
    """Return the calls that change a file of the run, in their order."""
    listing = command.output.with_suffix(".calls")
    run_whole(command, FileCalls(command.output, listing=listing).install)
    return listing.read_text().splitlines()


def list_system_calls(command: Command) -> list[SystemCall]:
    """Return the system calls of one save."""
    log, trace_file = command.output.with_suffix(".log"), command.output.with_suffix(".trace")
    started = start(command, log, hook=lambda: stop_at_save(TRACED_STEP))
    trace(started, trace_file, "-e", f"trace={','.join(NAMES)}")
    _check_ended(started)
    return list_calls(trace_file)


# --- the attacked runs ----------------------------------------------------------------------------


def attack_all(ground: Ground, kinds: list[Kind], seed: int, jobs: int) -> list[Attacked]:
    """Attack one run per kind in the list, some at the same time, and return what happened."""
    totals, made = Counter(kind.name for kind in kinds), Counter[str]()
    victims = []
    for index, kind in enumerate(kinds):
        folder = ground.folder / f"{index:03}"
        command = ground.make_command(folder / "run", kind)
        share = (made[kind.name] + 0.5) / totals[kind.name]
        made[kind.name] += 1
        choices = random.Random(f"{seed} {index}")
        victims.append(Victim(folder, command, choices, share, ground.facts))
    references = [ground.results[kind.processes] for kind in kinds]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(attack_one, victims, kinds, references))


def attack_one(victim: Victim, kind: Kind, reference: Result) -> Attacked:
    """Attack one run, start it again, and return the record. The folder of a lost run is kept."""
    victim.folder.mkdir()
    what = ""
    try:
        what = kind.attack(victim)
        outcome = judge(victim.run, reference, victim.start, may_refuse=kind.may_refuse)
    except (Misbehaved, NotTraced, Stuck) as error:
        outcome = Outcome("lost", str(error))
    if outcome.word != "lost":
        shutil.rmtree(victim.folder)
    reason = f"  ({outcome.reason})" if outcome.reason else ""
    number = int(victim.folder.name) + 1
    print(f"{number}  {outcome.word}  {kind.name}: {what}{reason}", file=sys.stderr, flush=True)
    reason = outcome.reason.replace(str(victim.folder), "...")
    return Attacked(kind.name, kind.processes, what, outcome.word, reason)


def run(kills: int, seed: int, jobs: int, folder: Path) -> dict[str, Any]:
    """Attack runs, and return the JSON document."""
    from benchmarks.record import read_environment

    began = time.monotonic()
    environment = asdict(read_environment())
    kinds = choose_kinds(kills, has_strace=is_available(folder))
    ground = prepare(folder, kinds)
    attacked = attack_all(ground, kinds, seed, jobs)
    return {
        "kills": kills,
        "seed": seed,
        "jobs": jobs,
        "seconds": round(time.monotonic() - began),
        "environment": environment,
        "file_calls": len(ground.facts.file_calls),
        "system_calls": len(ground.facts.system_calls),
        "outcomes": dict(Counter(each.outcome for each in attacked)),
        "runs": [asdict(each) for each in attacked],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=10, help="how many runs to attack (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed of all choices (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time (default: %(default)s)"
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="keep the JSON document in docs/ and write its table into docs/reliability.md",
    )
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # for programs, and for forks
    with redirect_stdout(sys.stderr):  # DeepSpeed logs to stdout
        document = run(arguments.kills, arguments.seed, arguments.jobs, folder)
    lost = document["outcomes"].get("lost", 0)
    if arguments.write_docs:
        page.write(document)
    print(json.dumps(document, indent=1))
    if lost:
        print(f"{lost} runs were lost; their folders are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
