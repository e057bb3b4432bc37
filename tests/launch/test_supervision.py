"""Signals reach the workers below a launcher, and their exit code comes back."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from lora_sft.launch.supervision import OUTCOME, find_workers, leave_outcome, supervise

# A launcher as torchrun is: dies of signals itself, returns 1 when a worker fails.
LAUNCHER = """
import os, subprocess, sys
environment = {**os.environ, "RANK": "0"}
finished = subprocess.run([sys.executable, "-c", sys.argv[1]], env=environment)
sys.exit(1 if finished.returncode else 0)
"""
WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from lora_sft.launch.supervision import leave_outcome
def stop(number, frame):
    leave_outcome(os.environ, {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}[number])
    sys.exit(1)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, stop)
Path(os.environ["READY"]).write_text(str(os.getpid()))
time.sleep(60)
"""


def run(worker, tmp_path, environment=None):
    command = [sys.executable, "-c", LAUNCHER, worker]
    return supervise(command, {**os.environ, **(environment or {})}, tmp_path / "status.json")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_reaches_the_workers_and_their_code_comes_back(number, code, tmp_path):
    ready = tmp_path / "ready"

    def send() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run(WORKER, tmp_path, {"READY": str(ready)}) == code
    sender.join()


def test_a_worker_that_was_killed_leaves_its_code_in_the_status(tmp_path):
    status = tmp_path / "status.json"
    worker = f"open({str(status)!r}, 'w').write('{{\"exit_code\": 6}}'); raise SystemExit(9)"
    assert run(worker, tmp_path) == 6


def test_an_old_status_is_not_this_runs(tmp_path):
    status = tmp_path / "status.json"
    status.write_text('{"exit_code": 75}')
    os.utime(status, (1, 1))
    assert run("raise SystemExit(9)", tmp_path) == 1


def test_a_run_that_ends_well_returns_nought(tmp_path):
    assert run("pass", tmp_path) == 0


def test_the_first_worker_to_speak_is_believed(tmp_path):
    environment = {OUTCOME: str(tmp_path / "code")}
    leave_outcome(environment, 0)  # it has done its part; the main process exports later
    leave_outcome(environment, 3)
    leave_outcome(environment, 6)
    assert (tmp_path / "code").read_text() == "3"


def test_a_process_without_children_has_no_workers():
    assert find_workers(2**22 + 1) == []
