"""Run one command of a lane. `tools/gpu/run.py` starts it in a process with the right libraries.

--list    print the lane's tasks as JSON on the last line
--judge   apply the lane's gates to its record
--task    run one task and write its case to the file --answer
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.lane import SCALES, Lane, Place, Task
from benchmarks.record import Record


def load_lane(name: str) -> Lane:
    """Import and return the lane's module."""
    lane: Lane = importlib.import_module(f"benchmarks.gpu.{name}")
    return lane


def main() -> None:
    """Read the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lane", required=True)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--task", type=json.loads)
    for name in ("record", "models", "work", "answer"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    _import_unsloth_first(given.task, given.work)
    lane = load_lane(given.lane)
    if given.list:
        print(json.dumps([task.to_dict() for task in lane.list_tasks(SCALES[given.scale])]))
    elif given.judge:
        judge = getattr(lane, "judge", None)
        if judge is not None:
            judge(Record.read(given.record))
    else:
        _perform(lane, given)


def _import_unsloth_first(task: dict[str, Any] | None, work_folder: Path) -> None:
    """If the task uses unsloth's libraries, import unsloth before the libraries that it patches."""
    if task is not None and task["tree"] == "unsloth":
        os.environ["UNSLOTH_COMPILE_LOCATION"] = str(work_folder / "unsloth_compiled")
        importlib.import_module("unsloth")


def _perform(lane: Lane, given: argparse.Namespace) -> None:
    known = given.record.exists()
    record = Record.read(given.record) if known else Record(given.record, given.lane)
    place = Place(record, given.models, given.work, SCALES[given.scale])
    case = lane.perform(Task(**given.task), place)
    given.answer.write_text(json.dumps(asdict(case), default=str))


if __name__ == "__main__":
    main()
