"""Run the project's GPU tests as a lane, so that their results come back in a record.

With toy sizes they run on the CPU, so that they can be debugged without a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.lane import Place, Scale, Task
from benchmarks.record import ROOT, Case, Measurement

MEASURE = "tests"

FOLDER = "tests/gpu"
MESSAGE_CHARACTERS = 1500


def list_tasks(scale: Scale) -> Iterator[Task]:
    """Yield one task with all GPU tests, or with a few of them at toy size."""
    options = {"-k": "lora_trains"} if scale.is_toy else {}
    yield Task("pytest -m gpu", "lora-sft", "ours", seconds=480, options=options)


def perform(task: Task, place: Place) -> Case:
    """Run pytest and return the counts and the outcome of each test.

    Raises: RuntimeError if pytest wrote no report.
    """
    report = place.work_folder / "report.xml"
    arguments = ["-m", "gpu", FOLDER, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    chosen = [part for pair in task.options.items() for part in pair]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *chosen],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **({"LORA_SFT_GPU_TESTS_ON": "cpu"} if place.scale.is_toy else {})},
    )
    if not report.exists():
        raise RuntimeError(
            f"pytest wrote no report: {finished.stdout[-800:]}{finished.stderr[-800:]}"
        )
    outcomes = read_report(report)
    counts = {
        name: sum(each["outcome"] == name for each in outcomes)
        for name in ("passed", "failed", "skipped")
    }
    measured = {
        name: Measurement("tests", (float(count),), "higher" if name == "passed" else "lower")
        for name, count in counts.items()
    }
    return Case(task.subject, task.contestant, task.role, measured, facts={"tests": outcomes})


def read_report(path: Path) -> list[dict[str, Any]]:
    """Return each test's name, outcome and seconds, and the message of a test that did not pass."""
    outcomes = []
    for test in ElementTree.parse(path).getroot().iter("testcase"):
        outcome, message = "passed", ""
        for child in test:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                message = (child.get("message") or "") + "\n" + (child.text or "")
        outcomes.append(
            {
                "name": test.get("name"),
                "outcome": outcome,
                "seconds": round(float(test.get("time", 0)), 2),
                "message": message.strip()[-MESSAGE_CHARACTERS:],
            }
        )
    return outcomes
