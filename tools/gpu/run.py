"""Run benchmark lanes on a GPU host without a network, and write one JSON file per lane.

    python tools/gpu/run.py tests throughput --minutes 9 --out results
    python tools/gpu/run.py --toy                      # all lanes with toy sizes, on any machine

Libraries that the host lacks are unpacked from `.gpu_pack/` (see pack.py). Sets of libraries that
cannot be mixed in one process get separate folders. The lanes run in the given order. Each task
runs in a separate process, and its result is written to disk at once. When the time is up, the
number of tasks that are left is printed. A later call continues from the records in `--out`, in the
work folder, or in `benchmarks/results`. If a task fails, its reason is recorded and the others
still run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.processes import run_measured  # noqa: E402
from benchmarks.record import (  # noqa: E402
    RESULTS,
    Case,
    Environment,
    Measurement,
    Record,
    name_device,
    open_record,
)
from tools.gpu.installed import install, list_library_folders  # noqa: E402

LANES = ("tests", "throughput", "memory", "ablation", "profile", "ceilings")
PACK = ROOT / ".gpu_pack"
MODELS_GIB = 40  # the size of the models of all lanes
LOG_CHARACTERS = 3000


@dataclass(frozen=True)
class Tree:
    """One unpacked set of libraries.

    Attributes:
        variables: The environment variables for a process that uses it.
        environment: The versions of the libraries, with the machine and the source.
    """

    name: str
    variables: dict[str, str]
    environment: Environment


@dataclass
class Visit:
    """The state of one call of this tool: its folders, its deadline and the failures so far."""

    out: Path
    work_folder: Path
    scale: str
    deadline: float
    trees: dict[str, Tree]
    has_cuda: bool
    failed: int = 0

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def main() -> int:
    given = _parse_arguments()
    visit = _open_visit(given)
    print(f"{name_device(visit.trees['wheels'].environment.machine)}: {visit.out}", flush=True)
    for lane in given.lanes or LANES:
        _run_lane(visit, lane)
    return 1 if visit.failed else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "lanes",
        nargs="*",
        choices=[*LANES, []],
        help=f"lanes to run (default: all): {', '.join(LANES)}",
    )
    parser.add_argument("--toy", action="store_true", help="use toy sizes, on any machine")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="total time for all lanes (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the records (default: benchmarks/results, with --toy WORK/results)",
    )
    parser.add_argument("--work", type=Path, help="folder for models, libraries and runs")
    return parser.parse_args()


def _open_visit(given: argparse.Namespace) -> Visit:
    deadline = time.monotonic() + given.minutes * 60
    work = given.work or _find_work_folder(given.toy)
    trees = {name: _open_tree(name, work, given.toy) for name in ("wheels", "unsloth")}
    machine = trees["wheels"].environment.machine
    out = given.out or (work / "results" if given.toy else RESULTS)
    scale = "toy" if given.toy else "full"
    return Visit(out, work, scale, deadline, trees, machine["gpu"] is not None)


def _find_work_folder(toy: bool) -> Path:
    """Return a folder in memory if the models fit, because every task reads them; else on disk."""
    memory = Path("/dev/shm")
    if not toy and memory.is_dir() and shutil.disk_usage(memory).free > MODELS_GIB * 2**30:
        return memory / "lora_sft_gpu"
    return Path(tempfile.gettempdir()) / "lora_sft_gpu"


def _open_tree(name: str, work: Path, toy: bool) -> Tree:
    """Unpack a set of libraries and read its versions. Toy runs use the installed libraries."""
    paths = [str(ROOT)]
    variables = {}
    if not toy and (PACK / name).is_dir():
        site = work / "site" / name
        install(PACK / name, site)
        paths.insert(0, str(site))
        libraries = [*map(str, list_library_folders(site)), os.environ.get("LD_LIBRARY_PATH", "")]
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    usage = run_measured([sys.executable, "-m", "benchmarks.record"], environment=variables)
    if usage.exit_code:
        raise SystemExit(f"cannot read this host's environment: {usage.last_lines}")
    return Tree(name, variables, Environment(**json.loads(usage.stdout)))


def _run_lane(visit: Visit, lane: str) -> None:
    """Run the tasks of a lane that have no result yet, until the time is up."""
    tasks = list(_list_tasks(visit, lane))
    device = name_device(visit.trees["wheels"].environment.machine)
    known = visit.work_folder / "results"
    record = open_record(
        visit.out, lane, device, start_from=known if (known / device).is_dir() else RESULTS
    )
    left = 0
    for task in tasks:
        tree = visit.trees[task["tree"]]
        if _is_done(record, task, tree.environment):
            continue
        if task["needs_cuda"] and not visit.has_cuda:
            skipped = _make_case(task, "skipped", "needs CUDA")
            record.put(skipped, tree.environment)
            continue
        if left or visit.seconds_left < _expect_seconds(record, task):
            left += 1
            continue
        _run_task(visit, record, lane, task, tree)
    _judge(visit, lane, record)
    _keep_for_the_next_call(record.path, known / device)
    rest = f"; {left} tasks left" if left else ""
    print(f"{lane}: {_count_statuses(record)}{rest}", flush=True)


def _keep_for_the_next_call(path: Path, known: Path) -> None:
    if path.exists() and path.parent != known:
        shutil.copy(path, _make_folder(known) / path.name)


def _list_tasks(visit: Visit, lane: str) -> Iterator[dict[str, Any]]:
    """Yield the lane's tasks. They are listed in a process that can import the libraries."""
    command = [sys.executable, "-m", "benchmarks.gpu.perform", "--lane", lane]
    usage = run_measured(
        [*command, "--scale", visit.scale, "--list"],
        environment=visit.trees["wheels"].variables,
    )
    if usage.exit_code:
        visit.failed += 1
        print(f"{lane}: cannot list the lane's tasks: {usage.last_lines}", flush=True)
        return
    yield from json.loads(usage.stdout.splitlines()[-1])


def _is_done(record: Record, task: dict[str, Any], environment: Environment) -> bool:
    case = record.cases.get((task["subject"], task["contestant"]))
    if case is None or case.environment != environment.key:
        return False
    return case.status in ("failed", "skipped") or max(case.num_samples, 1) > task["repeat"]


def _expect_seconds(record: Record, task: dict[str, Any]) -> float:
    """Estimate a task's time: its earlier time with a margin, else half of its time limit."""
    case = record.cases.get((task["subject"], task["contestant"]))
    took = case.facts.get("task_seconds") if case is not None else None
    return float(took) * 1.2 if took else float(task["seconds"]) * 0.5


def _run_task(visit: Visit, record: Record, lane: str, task: dict[str, Any], tree: Tree) -> None:
    started = time.monotonic()
    case = _perform(visit, record, lane, task, tree)
    took = time.monotonic() - started
    visit.failed += case.status == "failed"
    record.add(
        replace(case, facts={**case.facts, "task_seconds": round(took, 1)}), tree.environment
    )
    numbers = ", ".join(f"{name} {each.median:.4g}" for name, each in case.measurements.items())
    print(
        f"{lane}: {task['subject']}: {task['contestant']} #{task['repeat']}: "
        f"{case.status} {case.reason or numbers} ({took:.0f} s)",
        flush=True,
    )


def _perform(visit: Visit, record: Record, lane: str, task: dict[str, Any], tree: Tree) -> Case:
    """Run one task in a separate process and return its case. A failed case holds the reason."""
    with tempfile.TemporaryDirectory(dir=_make_folder(visit.work_folder)) as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.gpu.perform", "--lane", lane]
        command += ["--task", json.dumps(task), "--scale", visit.scale]
        command += ["--record", str(record.path), "--answer", str(answer)]
        command += ["--models", str(visit.work_folder / "models"), "--work", folder]
        finished = run_measured(
            command,
            environment=tree.variables,
            timeout_seconds=min(task["seconds"], max(visit.seconds_left, 1.0)),
        )
        if finished.exit_code == 0 and answer.exists():
            return _read_case(answer)
        reason = f"exit code {finished.exit_code}: {finished.last_lines}"
        if finished.exit_code == 124:
            reason = f"killed at its time limit; last lines: {finished.last_lines}"
        log = (finished.stdout + finished.stderr)[-LOG_CHARACTERS:]
        return replace(_make_case(task, "failed", reason), facts={"log": log})


def _read_case(answer: Path) -> Case:
    fields = json.loads(answer.read_text())
    measurements = {
        name: Measurement(each["unit"], tuple(each["samples"]), each["better"])
        for name, each in fields.pop("measurements").items()
    }
    return Case(**fields, measurements=measurements)


def _make_case(task: dict[str, Any], status: Any, reason: str) -> Case:
    return Case(task["subject"], task["contestant"], task["role"], status=status, reason=reason)


def _judge(visit: Visit, lane: str, record: Record) -> None:
    """Apply the lane's gates in a process that can import the libraries."""
    command = [sys.executable, "-m", "benchmarks.gpu.perform", "--lane", lane, "--judge"]
    if not record.path.exists():
        return
    judged = run_measured(
        [*command, "--record", record.path], environment=visit.trees["wheels"].variables
    )
    if judged.exit_code:
        visit.failed += 1
        print(f"{lane}: cannot apply the lane's gates: {judged.last_lines}", flush=True)
    else:
        record.cases = Record.read(record.path).cases


def _count_statuses(record: Record) -> str:
    statuses = [case.status for case in record.cases.values()]
    counts = (f"{statuses.count(each)} {each}" for each in sorted(set(statuses)))
    return ", ".join(counts) or "no results"


def _make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
