"""A run of several processes ends if one dies or hangs, and names this process and the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# One of two processes. It only watches the other, and then does the action of its argument.
PROCESS = """
import sys, time
from pathlib import Path
from lora_sft.run_directory import write_json
from lora_sft.processes import watch
from lora_sft.processes.this_process import Processes
folder, rank, action = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
watch.BEAT_SECONDS, watch.DEAD_SECONDS, watch.BLIND_SECONDS = 0.2, 2.0, 1.0
def write_status(code, reason):
    write_json(folder / "status.json", {"exit_code": code, "reason": reason, "by": rank})
one = watch.Watch(folder / "processes" / "x", Processes(rank, 2), 1.5, write_status)
one.start()
print("watching", flush=True)
def a_function_that_hangs():
    time.sleep(60)
if action == "fail":
    time.sleep(0.5)
    error = one.explain(ValueError("the disk is full"))
    one.end(3, str(error))
    one.stop()
    sys.exit(3)
if action == "fail without links":
    time.sleep(0.5)
    (folder / "processes" / "x" / f"end-{rank}.staged").unlink()
    one.end(3, "no hard links here")
    one.stop()
    sys.exit(3)
if action == "connection":
    time.sleep(1.0)
    error = one.explain(RuntimeError("gloo: connection closed by peer"))
    one.end(6, error.what)
    one.stop()
    print(error, file=sys.stderr)
    sys.exit(6)
if action == "stall":
    one.expect_steps(True)
if action == "finish":
    time.sleep(0.5)
    one.stop()
    sys.exit(0)
a_function_that_hangs()
"""


@pytest.fixture
def start(tmp_path):
    """Return a function: `start("wait", "fail")` starts two processes with these actions."""
    processes = []

    def start_all(*actions):
        for rank, action in enumerate(actions):
            command = [sys.executable, "-c", PROCESS, str(tmp_path), str(rank), action]
            processes.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "watching\n"
        return processes

    yield start_all
    for process in processes:
        process.kill()
        process.wait()


def read_status(tmp_path):
    return json.loads((tmp_path / "status.json").read_text())


def read_stacks(tmp_path, rank):
    return (tmp_path / "processes" / "x" / f"stacks-{rank}.txt").read_text()


def test_an_error_in_one_process_ends_all_with_its_reason_and_exit_code(start, tmp_path):
    processes = start("wait", "fail")
    assert [process.wait(timeout=20) for process in processes] == [3, 3]
    assert read_status(tmp_path) == {"exit_code": 3, "reason": "the disk is full", "by": 1}
    assert "a_function_that_hangs" in read_stacks(tmp_path, 0)


def test_without_hard_links_the_reason_still_reaches_the_other_process(start, tmp_path):
    processes = start("wait", "fail without links")
    assert [process.wait(timeout=20) for process in processes] == [3, 3]
    assert read_status(tmp_path)["reason"] == "no hard links here"


def test_a_killed_process_is_noticed_and_named(start, tmp_path):
    processes = start("wait", "wait")
    processes[1].kill()
    began = time.monotonic()
    assert processes[0].wait(timeout=20) == 6
    assert time.monotonic() - began < 10
    assert f"process 1 (pid {processes[1].pid} on" in read_status(tmp_path)["reason"]
    assert "a_function_that_hangs" in read_stacks(tmp_path, 0)


def test_a_process_of_another_container_is_not_looked_up_by_its_id(start, tmp_path):
    """Containers may share a host name, but each has its own process ids."""
    (process,) = start("wait")
    beat = tmp_path / "processes" / "x" / "beat-0.json"
    ended = subprocess.Popen(["true"])
    ended.wait()
    other = {**json.loads(beat.read_text()), "pids": "elsewhere", "pid": ended.pid}
    for count in range(20):
        staged = beat.with_name("staged")
        staged.write_text(json.dumps({**other, "beat": count}))
        staged.replace(beat.with_name("beat-1.json"))
        time.sleep(0.2)
    assert process.poll() is None
    assert process.wait(timeout=20) == 6
    assert "sent no heartbeat for 2 s" in read_status(tmp_path)["reason"]


def test_a_suspended_process_is_noticed(start, tmp_path):
    """None of its threads runs, as on a machine that hangs."""
    processes = start("wait", "wait")
    os.kill(processes[1].pid, signal.SIGSTOP)
    assert processes[0].wait(timeout=20) == 6
    assert "sent no heartbeat for 2 s" in read_status(tmp_path)["reason"]


def test_a_run_continues_after_all_its_processes_were_suspended(start, tmp_path):
    """A scheduler may suspend all processes, and resume them one after the other."""
    processes = start("wait", "wait")
    for process in reversed(processes):  # rank 0 must have seen the last heartbeat of rank 1
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.6)
    time.sleep(3.0)  # more than the 2 s after which a process counts as dead
    for process in processes:
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.5)
    time.sleep(3.0)
    assert [process.poll() for process in processes] == [None, None]
    assert not (tmp_path / "status.json").exists()


def test_a_run_without_steps_ends_as_stalled_and_writes_all_stacks(start, tmp_path):
    processes = start("stall", "stall")
    assert [process.wait(timeout=20) for process in processes] == [6, 6]
    assert "no process made a step for" in read_status(tmp_path)["reason"]
    for rank in range(2):
        assert "a_function_that_hangs" in read_stacks(tmp_path, rank)


def test_a_broken_connection_is_explained_by_the_process_that_died(start, tmp_path):
    processes = start("connection", "wait")
    processes[1].kill()
    assert processes[0].wait(timeout=20) == 6
    assert "died without an error message" in read_status(tmp_path)["reason"]


def test_a_run_without_errors_leaves_no_files(start, tmp_path):
    processes = start("finish", "finish")
    assert [process.wait(timeout=20) for process in processes] == [0, 0]
    assert not (tmp_path / "processes").exists()
    assert not (tmp_path / "status.json").exists()
