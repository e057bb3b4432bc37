"""Processes wait for each other with files, exchange messages, and end together."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_sft.errors import DataError, TrainingError
from lora_sft.processes import meeting
from lora_sft.processes.meeting import check_same_data, leave_after_main, meet
from lora_sft.processes.this_process import Processes
from lora_sft.processes.watch import Watch


@pytest.fixture
def watches(tmp_path):
    """The watches of two processes of one run. The tests use two threads in their place."""
    return [Watch(tmp_path, Processes(rank, 2), 60.0, lambda *_: None) for rank in range(2)]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_each_process_waits_for_the_last_one(watches, pool):
    first = pool.submit(meet, watches[0], "data", "from 0")
    time.sleep(0.5)
    assert not first.done()
    assert meet(watches[1], "data", "from 1") == {0: "from 0", 1: "from 1"}
    assert first.result(timeout=10) == {0: "from 0", 1: "from 1"}


def test_a_run_of_one_process_does_not_wait():
    assert meet(None, "data", "mine") == {0: "mine"}


def test_a_waiting_process_ends_if_another_process_ends_the_run(watches, pool):
    waiting = pool.submit(meet, watches[0], "model")
    watches[1].end(3, "the disk is full")
    with pytest.raises(TrainingError, match="process 1 ended the run: the disk is full") as caught:
        waiting.result(timeout=10)
    assert caught.value.exit_code == 3


def test_a_long_wait_names_the_missing_process(watches, pool, monkeypatch, capsys):
    monkeypatch.setattr(meeting, "SAY_EVERY_SECONDS", 0.2)
    waiting = pool.submit(meet, watches[0], "model")
    time.sleep(0.6)
    meet(watches[1], "model")
    waiting.result(timeout=10)
    assert "waiting for process 1 (model)" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "validation"])
def test_different_rows_on_two_machines_end_every_process(watches, pool, split):
    same = {"train": "0" * 64, "validation": "0" * 64}
    seen = [same, {**same, split: "1" * 64}]
    found = [pool.submit(check_same_data, watches[rank], seen[rank]) for rank in range(2)]
    for rank, each in enumerate(found):
        what = f"the {split} rows of process {1 - rank} differ from those of process {rank}"
        with pytest.raises(DataError, match=what):
            each.result(timeout=10)


def test_equal_rows_on_all_machines_are_accepted(watches, pool):
    rows = {"train": "0" * 64}
    for each in [pool.submit(check_same_data, watch, rows) for watch in watches]:
        each.result(timeout=10)
    check_same_data(None, rows)


def test_the_others_wait_for_rank_0_and_rank_0_leaves_last(watches, pool):
    beat = watches[0].folder / "beat-1.json"
    beat.touch()
    other = pool.submit(leave_after_main, watches[1])
    time.sleep(0.5)
    assert not other.done()
    main = pool.submit(leave_after_main, watches[0])
    other.result(timeout=10)
    assert not main.done()  # its message must stay until the other process has read it
    beat.unlink()
    main.result(timeout=5)
    leave_after_main(None)


def test_if_rank_0_fails_at_the_end_the_others_return_its_exit_code(watches, pool):
    """`status.json` exists by then, but it does not mean that the run succeeded."""
    watches[0].end(7, "the output exists already")
    (watches[0].folder / "status.json").touch()
    with pytest.raises(TrainingError, match="the output exists already") as caught:
        pool.submit(leave_after_main, watches[1]).result(timeout=10)
    assert caught.value.exit_code == 7
