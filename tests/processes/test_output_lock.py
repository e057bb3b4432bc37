"""Two runs never write into the same directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from lora_sft.errors import RecipeError
from lora_sft.processes.output_lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from lora_sft.processes.output_lock import locked
with locked(Path(sys.argv[1]), is_main=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


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
