"""What two processes do when a step, a save or the launch goes wrong."""

from __future__ import annotations

import json
import sys

import pytest

from tests.commands import find_free_port, read_metrics, run_process
from tests.distributed.cells import write_recipe_for

pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
pytestmark = pytest.mark.slow


def read_status(folder):
    return json.loads((folder / "run" / "status.json").read_text())


def run_module(module, *arguments, **environment):
    torchrun = ["-m", "torch.distributed.run", f"--master_port={find_free_port()}"]
    command = [sys.executable, *torchrun, "--nproc_per_node=2", "-m", module, *arguments]
    return run_process(*command, **environment)


@pytest.mark.parametrize("spread", ["ddp", "zero0", "zero1", "zero2_offload", "zero3"])
def test_a_gradient_that_is_no_number_ends_the_run_and_keeps_nothing_of_it(
    spread, tmp_path, shared_model
):
    """ZeRO would leave the step out, with a warning, and go on."""
    recipe = write_recipe_for(tmp_path, shared_model, "lora", spread, "run", max_steps=4)
    outcome = run_module("tests.distributed.poison", "train", recipe, POISON="2")
    assert outcome.code != 0
    status = read_status(tmp_path)
    assert status["exit_code"] == 6, outcome.stderr
    assert "the gradient is " in status["reason"]
    assert "at optimizer step 2" in status["reason"]
    assert list(read_metrics(tmp_path / "run", "loss")) == [1]
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert not (tmp_path / "run" / "adapter").exists()
