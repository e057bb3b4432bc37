"""Attacked runs end equal or refused, and the judge of the attacks finds runs that are lost."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.commands import run_process
from tests.docs.test_drift import REPOSITORY
from tools.attacks import page
from tools.attacks.kinds import CYCLE, choose_kinds, kill_at_system_call
from tools.attacks.outcomes import Result, find_intact, hash_file, judge
from tools.attacks.system_calls import list_calls

NUM_ATTACKS = 10
ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
REFUSAL = "error: it is damaged\nwhere: RUN\nfix:   restore it, or add --overwrite to train again\n"


@pytest.mark.first
def test_ten_attacked_runs_lose_nothing():
    outcome = run_process(sys.executable, REPOSITORY / "tools" / "chaos.py", "--kills", NUM_ATTACKS)
    assert outcome.code == 0, outcome.stderr
    ended = Counter(run["outcome"] for run in outcome.json["runs"])
    assert set(ended) == {"equal", "refused"}
    assert sum(ended.values()) == NUM_ATTACKS
    assert ended["equal"] >= 7
    assert {run["processes"] for run in outcome.json["runs"]} == {1, 2}


def test_ten_attacks_are_of_different_kinds_and_strace_is_not_necessary():
    assert len({kind.name for kind in choose_kinds(NUM_ATTACKS, has_strace=True)}) == NUM_ATTACKS
    without = choose_kinds(len(CYCLE), has_strace=False)
    assert all(kind.attack is not kill_at_system_call for kind in without)
    assert len(without) == len(CYCLE)


# --- the judge ------------------------------------------------------------------------------------


class FakeStart:
    """A start that has ended with this exit code and log."""

    def __init__(self, exit_code: int, log: str) -> None:
        self.exit_code, self.log = exit_code, log

    def wait(self) -> int:
        return self.exit_code

    def read_log(self) -> str:
        return self.log


@pytest.fixture
def run(tmp_path):
    """Return a run with two checkpoints and the files of a finished run."""
    run = tmp_path / "run"
    for name in ADAPTER:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("whole")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "train_runtime": 1.0}\n')
    for step in (2, 10):
        weights = run / f"checkpoints/checkpoint-{step}" / "weights"
        weights.parent.mkdir(parents=True)
        weights.write_text(f"weights of step {step}")
        files = {weights.name: {"sha256": hash_file(weights)}}
        (weights.parent / "manifest.json").write_text(json.dumps({"files": files}))
    return run


def judge_start(run: Path, exit_code: int, log: str, *, may_refuse=True, change=lambda: None):
    """Return the outcome of a run whose next start ends like this, and then succeeds."""
    reference = Result.read(run)
    ends = iter([FakeStart(exit_code, log), FakeStart(0, "")])

    def start(*options: str) -> FakeStart:
        change()
        return next(ends)

    return judge(run, reference, start, may_refuse=may_refuse)


def continued(run: Path) -> str:
    return f"continuing from {run / 'checkpoints/checkpoint-10'}\n"


def test_a_run_that_continued_from_its_newest_intact_checkpoint_is_equal(run):
    assert judge_start(run, 0, continued(run)).word == "equal"
    (run / "checkpoints/checkpoint-10/weights").write_text("damaged")
    assert find_intact(run) == run / "checkpoints/checkpoint-2"
    assert judge_start(run, 0, continued(run)).word == "lost"


def test_a_silent_restart_is_lost_although_the_result_is_equal(run):
    outcome = judge_start(run, 0, "done\n")
    assert outcome.word == "lost"
    assert "did not continue from checkpoint-10" in outcome.reason
    shutil.rmtree(run / "checkpoints")
    assert judge_start(run, 0, "done\n").word == "equal"


@pytest.mark.parametrize("name", [*ADAPTER, "metrics.jsonl"])
def test_other_results_are_lost(run, name):
    def change():
        (run / name).write_text('{"step": 1, "loss": 2.4}\n')

    assert judge_start(run, 0, continued(run), change=change).word == "lost"


def test_the_time_of_a_run_makes_no_difference(run):
    def change():
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "train_runtime": 7.0}\n')

    assert judge_start(run, 0, continued(run), change=change).word == "equal"


def test_a_refusal_has_three_lines_a_fitting_exit_code_and_a_fix_that_works(run):
    assert judge_start(run, 2, REFUSAL).word == "refused"
    assert judge_start(run, 2, REFUSAL, may_refuse=False).word == "lost"
    assert judge_start(run, 1, REFUSAL).word == "lost"
    assert judge_start(run, 2, "Traceback (most recent call last)\n" + REFUSAL).word == "lost"
    assert judge_start(run, 6, "error: it is damaged\n").word == "lost"
    assert judge_start(run, 2, REFUSAL.replace("--overwrite", "a wish")).word == "lost"


@pytest.mark.parametrize("name", ["checkpoints/checkpoint-2/weights", ADAPTER[0], "manifest.json"])
def test_a_refused_start_that_deletes_a_file_is_lost(run, name):
    (run / "manifest.json").write_text("{}")
    outcome = judge_start(run, 2, REFUSAL, change=lambda: (run / name).unlink(missing_ok=True))
    assert outcome.word == "lost"
    assert name in outcome.reason


def test_the_system_calls_of_a_save_are_counted_by_name(tmp_path):
    trace = tmp_path / "trace"
    trace.write_text(
        'openat(AT_FDCWD, "/run/checkpoints/checkpoint-6/a", O_RDONLY) = 3\n'
        'openat(AT_FDCWD, "/run/checkpoints/checkpoint-6/b", O_WRONLY|O_CREAT) = 3\n'
        'write(3, "b", 1) = 1\n'
        'unlink("/nonexistent/end-of-the-save") = -1 ENOENT\n'
        'write(3, "after the save", 14) = 14\n'
    )
    calls = [(call.name, call.number, call.text) for call in list_calls(trace)]
    assert calls == [("openat", 2, "checkpoint-6/b"), ("write", 1, "")]


# --- the page -------------------------------------------------------------------------------------


def test_the_page_shows_the_record():
    assert page.PAGE.read_text(encoding="utf-8") == page.make_page()


def test_the_record_is_of_three_hundred_runs_and_none_is_lost():
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    ended = Counter(run["outcome"] for run in record["runs"])
    assert record["kills"] == sum(ended.values()) >= 300
    assert record["outcomes"] == dict(ended)
    assert ended["lost"] == 0
    traced = "SIGKILL at a system call of a save"
    killed = {run["what"] for run in record["runs"] if run["kind"] == traced}
    assert len(killed) == record["system_calls"] > 50


def test_every_test_that_the_page_names_exists():
    names = [word for word in page.PAGE.read_text().split("`") if word.startswith("tests/")]
    assert len(names) >= 12
    assert [name for name in names if not (REPOSITORY / name).is_file()] == []
