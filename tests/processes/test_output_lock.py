"""Two runs never write into the same directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from lora_sft.errors import RecipeError
from lora_sft.processes import output_lock
from lora_sft.processes.output_lock import is_ending, locked

HOLDER = """
import sys, time
from pathlib import Path
from lora_sft.processes.output_lock import locked
with locked(Path(sys.argv[1]), is_main=True):
    print("held", flush=True)
    time.sleep(60)
"""
# Starts a child that has a copy of the lock for some seconds, and ends.
PARENT = """
import os, subprocess, sys
from pathlib import Path
from lora_sft.processes.output_lock import locked
with locked(Path(sys.argv[1]), is_main=True):
    lock = os.open(Path(sys.argv[1]) / ".lock", os.O_RDONLY)
    copies = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
              and os.path.samefile(f"/proc/self/fd/{fd}", Path(sys.argv[1]) / ".lock")]
    subprocess.Popen(["sleep", sys.argv[2]], pass_fds=copies, stdout=subprocess.DEVNULL)
    os._exit(0)
"""
FORKING_HOLDER = """
import os, sys, time
from pathlib import Path
from lora_sft.processes.output_lock import locked
with locked(Path(sys.argv[1]), is_main=True):
    if os.fork() > 0:
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Return a function that starts a process, and waits until it holds the lock."""
    processes = []

    def hold(program):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def holder(hold):
    return hold(HOLDER)


def test_a_second_run_is_refused_and_the_first_is_named(holder, tmp_path):
    with pytest.raises(RecipeError) as caught, locked(tmp_path, is_main=True):
        pass
    assert f"process {holder.pid} on " in caught.value.what
    assert caught.value.where.endswith("output_dir")


def test_a_killed_run_leaves_no_lock(holder, tmp_path):
    holder.kill()
    holder.wait()
    with locked(tmp_path, is_main=True):
        pass


def test_the_lock_is_free_although_a_forked_process_outlives_the_killed_run(hold, tmp_path):
    process = hold(FORKING_HOLDER)
    process.kill()
    process.wait()
    os.killpg(process.pid, 0)  # the forked process is still running
    began = time.monotonic()
    with locked(tmp_path, is_main=True):
        assert time.monotonic() - began < 5


def test_a_start_waits_for_what_an_ended_run_has_left(tmp_path):
    subprocess.run([sys.executable, "-c", PARENT, str(tmp_path), "1"], check=True)
    began = time.monotonic()
    with locked(tmp_path, is_main=True):
        assert 0.2 < time.monotonic() - began < 5


def test_a_start_does_not_wait_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "ENDING_SECONDS", 0.1)
    subprocess.run([sys.executable, "-c", PARENT, str(tmp_path), "2"], check=True)
    with pytest.raises(RecipeError) as caught, locked(tmp_path, is_main=True):
        pass
    assert "has ended, but a process that it started still uses" in caught.value.what
    assert f"fuser {tmp_path / '.lock'}" in caught.value.fix


def test_only_an_ended_process_of_this_machine_is_ending():
    here = socket.gethostname()
    assert not is_ending(f"process {os.getpid()} on {here}")
    assert not is_ending(f"process {os.getpid()} on another-machine")
    assert not is_ending("")
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_ending(f"process {child.pid} on {here}")  # a zombie
    child.wait()
    assert is_ending(f"process {child.pid} on {here}")


def test_the_other_processes_of_a_run_do_not_lock(holder, tmp_path):
    with locked(tmp_path, is_main=False):
        pass


def test_a_second_start_of_a_running_recipe_is_refused(command, write_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run", is_main=True):
        outcome = command("train", write_recipe())
    assert outcome.code == 2
    assert f"another run uses this output directory (process {os.getpid()}" in outcome.stderr
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_before_the_first_step_ends_the_run_with_its_code(
    number, code, write_recipe, tmp_path
):
    """The model is still loading, so no training is lost."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_sft", "train", str(write_recipe())],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    while "rows read" not in process.stderr.readline():  # then the model loads
        assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert f"stopped by {number.name}" in error
    assert "Traceback" not in error
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["exit_code"], status["step"]) == (code, 0)
    assert status["state_saved"] is False
