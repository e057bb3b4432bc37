"""A suspended process ends the run on both of two machines (two network namespaces)."""

from __future__ import annotations

import json
import sys

import pytest

from tests.commands import run_process
from tests.distributed.test_two_nodes import TOOL, can_make_namespaces

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stopped", [0, 1])
def test_launch_ends_on_both_machines_after_a_process_was_suspended(
    stopped, write_recipe, tmp_path
):
    """Without `launch`, torchrun on machine 0, which hosts the rendezvous, waits for ever."""
    if not can_make_namespaces():
        pytest.skip("NETWORK NAMESPACES ARE NOT AVAILABLE: they need root and iproute2")
    recipe = write_recipe()
    outcome = run_process(
        *(sys.executable, TOOL, "--launcher", "launch", "--stop", stopped, recipe),
        *("train.max_steps=100000", "train.save_steps=5"),
        timeout_seconds=500,
    )
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert result["exit_codes"] == [6, 6], outcome.stderr
    assert max(result["seconds"]) < 60
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert f"process {stopped}" in status["reason"]
    assert "sent no heartbeat" in status["reason"]
