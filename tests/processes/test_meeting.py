"""Processes wait for each other through files, hear each other's word, and end together."""

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
    """What two processes of one run see of it; here they are two threads."""
    return [Watch(tmp_path, Processes(rank, 2), 60.0, lambda *_: None) for rank in range(2)]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_nobody_goes_on_before_the_last_one_is_there(watches, pool):
    first = pool.submit(meet, watches[0], "data", "of zero")
    time.sleep(0.5)
    assert not first.done()
    assert meet(watches[1], "data", "of one") == {0: "of zero", 1: "of one"}
    assert first.result(timeout=10) == {0: "of zero", 1: "of one"}


def test_a_place_is_met_at_once_by_a_run_of_one_process():
    assert meet(None, "data", "alone") == {0: "alone"}


def test_who_waits_leaves_when_another_process_ends_the_run(watches, pool):
    waiting = pool.submit(meet, watches[0], "model")
    watches[1].end(3, "the disk is full")
    with pytest.raises(TrainingError, match="process 1 ended the run: the disk is full") as caught:
        waiting.result(timeout=10)
    assert caught.value.exit_code == 3


def test_a_long_wait_names_who_is_missing(watches, pool, monkeypatch, capsys):
    monkeypatch.setattr(meeting, "SAY_EVERY_SECONDS", 0.2)
    waiting = pool.submit(meet, watches[0], "model")
    time.sleep(0.6)
    meet(watches[1], "model")
    waiting.result(timeout=10)
    assert "waiting for process 1 (model)" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_that_differ_between_machines_end_every_process(watches, pool, split):
    same = {"train": "0" * 64, "validation": "0" * 64}
    seen = [same, {**same, split: "1" * 64}]
    found = [pool.submit(check_same_data, watches[rank], seen[rank]) for rank in range(2)]
    for rank, each in enumerate(found):
        what = f"process {1 - rank} has other {split} rows than process {rank}"
        with pytest.raises(DataError, match=what):
            each.result(timeout=10)


def test_rows_that_are_the_same_everywhere_are_trained_on(watches, pool):
    rows = {"train": "0" * 64}
    for each in [pool.submit(check_same_data, watch, rows) for watch in watches]:
        each.result(timeout=10)
    check_same_data(None, rows)


def test_the_others_stay_until_the_main_process_says_so_and_it_leaves_last(watches, pool):
    beat = watches[0].folder / "beat-1.json"
    beat.touch()
    other = pool.submit(leave_after_main, watches[1])
    time.sleep(0.5)
    assert not other.done()
    main = pool.submit(leave_after_main, watches[0])
    other.result(timeout=10)
    assert not main.done()  # what it put down stays until the others have seen it
    beat.unlink()
    main.result(timeout=5)
    leave_after_main(None)


def test_a_main_process_that_fails_at_the_end_gives_the_others_its_exit_code(watches, pool):
    """The status is written by then, and is no sign of a good end."""
    watches[0].end(7, "the output exists already")
    (watches[0].folder / "status.json").touch()
    with pytest.raises(TrainingError, match="the output exists already") as caught:
        pool.submit(leave_after_main, watches[1]).result(timeout=10)
    assert caught.value.exit_code == 7
