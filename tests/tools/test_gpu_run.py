"""Run every lane with toy sizes on the CPU, so that faults are found before a GPU is used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import ROOT
from tests.commands import Outcome, run_process

pytestmark = pytest.mark.first

RUN = ROOT / "tools" / "gpu" / "run.py"
LANES = ("tests", "throughput", "memory", "ablation", "profile", "ceilings")
SECONDS = 900

# The only tasks that are skipped on a machine without CUDA.
NEEDS_CUDA = {
    ("throughput", "toy, lora, toy", "unsloth, its defaults"),
    ("ablation", "toy, lora, toy", "train.optim=paged_adamw_8bit"),
    ("ceilings", "attention over packed documents", "this device"),
}


def run_lanes(folder: Path, *arguments: str) -> Outcome:
    where = ("--out", str(folder / "out"), "--work", str(folder / "work"))
    return run_process(sys.executable, RUN, *arguments, "--toy", *where, timeout_seconds=SECONDS)


def read_cases(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (path.stem, case["subject"], case["contestant"]): case
        for path in (folder / "out").rglob("*.json")
        for case in json.loads(path.read_text())["cases"]
    }


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("visit")
    return folder, run_lanes(folder, "--minutes", "14")


@pytest.mark.timeout(1800)  # it takes six minutes on an idle machine
def test_every_lane_runs_with_toy_sizes_and_skips_only_tasks_that_need_cuda(
    visit: tuple[Path, Outcome],
) -> None:
    folder, outcome = visit
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    assert "tasks left" not in outcome.stdout
    cases = read_cases(folder)
    assert {lane for lane, *_ in cases} == set(LANES)
    assert {key for key, case in cases.items() if case["status"] == "skipped"} == NEEDS_CUDA
    assert all(cases[key]["reason"] == "needs CUDA" for key in NEEDS_CUDA)
    others = {key: case for key, case in cases.items() if key not in NEEDS_CUDA}
    assert {key: case["reason"] for key, case in others.items() if case["reason"]} == {}
    assert len(others) == 18


def test_the_toy_throughput_passed_its_gates_with_a_reference(visit: tuple[Path, Outcome]) -> None:
    cases = read_cases(visit[0])
    contestants = ("lora-sft", "TRL, its defaults", "TRL, tuned", "plain PEFT loop")
    for contestant in contestants:
        facts = cases["throughput", "toy, lora, toy", contestant]["facts"]
        assert facts["unchecked"] == []
        assert facts["tokens_seen"] == facts["tokens_of_documents_seen"] > 0
    assert cases["throughput", "toy, lora, toy", "TRL, tuned"]["facts"]["documents_per_row"] > 1


def test_a_second_call_runs_only_the_tasks_that_are_left(visit: tuple[Path, Outcome]) -> None:
    folder, _ = visit
    outcome = run_lanes(folder, "ceilings", "memory")
    assert outcome.code == 0
    assert "#0" not in outcome.stdout  # no task ran again
    assert "ceilings: 3 measured, 1 skipped" in outcome.stdout


def test_when_the_time_is_up_the_remaining_tasks_are_counted(tmp_path: Path) -> None:
    outcome = run_lanes(tmp_path, "memory", "--minutes", "0")
    assert outcome.code == 0
    assert "memory: no results; 4 tasks left" in outcome.stdout


def test_a_failing_task_gives_its_reason_and_the_others_still_run(tmp_path: Path) -> None:
    models = tmp_path / "work" / "models"
    models.mkdir(parents=True)
    (models / "toy").write_text("a file where the model's folder should be")
    outcome = run_lanes(tmp_path, "profile", "ceilings")
    assert outcome.code == 1
    cases = read_cases(tmp_path)
    [failed] = [case for case in cases.values() if case["status"] == "failed"]
    assert "NotADirectoryError" in failed["reason"]
    assert sum(case["status"] == "measured" for case in cases.values()) == 3
