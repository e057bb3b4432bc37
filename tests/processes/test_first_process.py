"""One process prepares the data; the processes that need the same data wait for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# Builds the data if no process has built it, takes the given seconds, and logs each build.
BUILDER = """
import sys, time
from pathlib import Path
from lora_sft.processes import first_process
first_process.SAY_EVERY_SECONDS = 0.3
folder, work = Path(sys.argv[1]), sys.argv[2]
print("started", flush=True)
with first_process.build_once(folder, {"data": work}):
    done = folder / f"{work}.done"
    if not done.exists():
        with (folder / "log").open("a") as log:
            log.write(f"built {work}\\n")
        time.sleep(float(sys.argv[3]))
        done.touch()
print("ready", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    processes = []

    def start_one(work="corpus", seconds=1.5):
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path), work, str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    yield start_one
    for process in processes:
        process.kill()
        process.wait()


def wait_for_log(tmp_path):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (tmp_path / "log").exists():
        time.sleep(0.02)


def test_one_process_builds_and_the_others_log_that_they_wait(start, tmp_path):
    builder = start()
    wait_for_log(tmp_path)
    waiting = [start(), start()]
    for process in (builder, *waiting):
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "log").read_text() == "built corpus\n"
    assert "waiting for another process that prepares the data" in waiting[0].stderr.read()


def test_after_the_builder_is_killed_the_next_process_builds(start, tmp_path):
    builder = start(seconds=60)
    wait_for_log(tmp_path)
    other = start(seconds=0)
    builder.send_signal(signal.SIGKILL)
    assert other.wait(timeout=30) == 0
    assert (tmp_path / "log").read_text() == "built corpus\nbuilt corpus\n"


def test_a_process_with_other_data_does_not_wait(start, tmp_path):
    start(seconds=60)
    wait_for_log(tmp_path)
    assert start("other", seconds=0).wait(timeout=30) == 0
