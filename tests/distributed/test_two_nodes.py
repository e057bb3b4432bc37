"""Train on two machines (two network namespaces), lose one, and resume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import read_metrics, run_process
from tests.distributed.cells import write_recipe_for

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "two_nodes.py"
END_SECONDS = 60
LONG = 40  # more steps than the run makes before it is killed


def can_make_namespaces():
    """Return whether this process may make network namespaces: it needs root and `ip`."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


@pytest.fixture(autouse=True)
def namespaces():
    """Skip the test without network namespaces; CI runs as root with iproute2 and has them."""
    if not can_make_namespaces():
        pytest.skip("NETWORK NAMESPACES ARE NOT AVAILABLE: they need root and iproute2")


def run_two_nodes(*arguments):
    outcome = run_process(sys.executable, TOOL, *arguments, timeout_seconds=500)
    return outcome, json.loads(outcome.stdout.splitlines()[-1])


@pytest.mark.parametrize("launcher", ["torchrun", "launch"])
def test_two_machines_give_the_losses_of_one_process(launcher, cell, tmp_path, shared_model):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run")
    outcome, result = run_two_nodes("--launcher", launcher, recipe)
    assert result["exit_codes"] == [0, 0], outcome.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert manifest["first_step"]["rows_read_by_several"] == 0
    expected = cell("lora", "one").read("loss")
    assert read_metrics(tmp_path / "run", "loss") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("killed", [0, 1])
def test_both_machines_end_after_a_process_is_killed_and_the_run_can_resume(
    killed, tmp_path, shared_model
):
    recipe = write_recipe_for(
        tmp_path, shared_model, "lora", "ddp", "run", max_steps=LONG, save_steps=1
    )
    outcome, result = run_two_nodes("--kill", killed, recipe)
    assert all(result["exit_codes"])
    assert max(result["seconds"]) < END_SECONDS
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 6
    assert "process" in status["reason"]
    assert "the same command continues from the last checkpoint" in outcome.stderr
    assert 1 <= max(read_metrics(tmp_path / "run", "loss")) < LONG
    again, result = run_two_nodes(recipe)
    assert result["exit_codes"] == [0, 0], again.stderr
    assert "continuing from" in again.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == list(range(1, LONG + 1))
