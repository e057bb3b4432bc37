"""Train on two processes with each launcher's command line, and with `lora-sft launch`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import find_free_port, read_metrics, run_process
from tests.distributed.cells import STEPS, write_recipe_for

pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
pytestmark = pytest.mark.slow


def launch_by(name, recipe, *arguments):
    train = ["lora_sft", "train", str(recipe), *arguments]
    port = str(find_free_port())
    accelerate = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
    commands = {
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
        "accelerate": [*accelerate, "--multi_gpu", "--main_process_port", port, "-m"],
        "accelerate --use_deepspeed": [
            *accelerate, "--use_deepspeed", "--main_process_port", port, "-m"
        ],
        "deepspeed": [
            "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", port, "--module"
        ],
    }  # fmt: skip
    return run_process(sys.executable, *commands[name], *train, DS_ACCELERATOR="cpu")


@pytest.mark.parametrize(
    ("launcher", "setting"),
    [
        ("torchrun", "ddp"),
        ("torchrun", "zero3"),
        ("accelerate", "ddp"),
        ("accelerate --use_deepspeed", "zero2"),
        ("deepspeed", "zero2"),
        ("deepspeed", "zero3"),
    ],
)
def test_each_launcher_trains_and_resumes_on_two_processes(
    launcher, setting, cell, tmp_path, shared_model
):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", setting, "run", max_steps=STEPS // 2)
    first = launch_by(launcher, recipe)
    assert first.code == 0, first.stderr
    assert ("states are signed with the key" in first.stderr) is (setting != "ddp")
    assert "warning: process" not in first.stderr  # both have the same key
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert manifest["first_step"]["rows_by_process"] == [4, 4]
    assert manifest["first_step"]["rows_read_by_several"] == 0
    longer = launch_by(launcher, recipe, f"train.max_steps={STEPS}")
    assert longer.code == 0, longer.stderr
    assert "continuing from" in longer.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == list(range(1, STEPS + 1))


def test_if_accelerate_starts_one_process_instead_of_two_the_run_is_refused(tmp_path, shared_model):
    """`accelerate launch --cpu --num_processes 2` starts one process without a warning."""
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run")
    outcome = run_process(
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
        *("-m", "lora_sft", "train", recipe),
    )
    assert outcome.code != 0
    assert "accelerate was asked for several processes but started one" in outcome.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_launch_starts_the_processes_and_returns_their_exit_code(tmp_path, shared_model):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run", max_steps=2)
    outcome = run_process(sys.executable, "-m", "lora_sft", "launch", recipe, "--gpus", "2")
    assert outcome.code == 0, outcome.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    broken = tmp_path / "train.jsonl"
    broken.write_text('{"messages": [')
    again = run_process(
        *(sys.executable, "-m", "lora_sft", "launch", recipe, "--gpus", "2", "--overwrite")
    )
    assert again.code == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_launch_forwards_a_signal_and_the_run_saves_its_state(number, tmp_path, shared_model):
    recipe = write_recipe_for(
        tmp_path, shared_model, "lora", "ddp", "run", max_steps=60, save_steps=100
    )
    command = [sys.executable, "-m", "lora_sft", "launch", str(recipe), "--gpus", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    expected = 130 if number == signal.SIGINT else 75
    assert process.wait(timeout=120) == expected
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == expected
    assert 1 <= status["step"] < 60
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{status['step']}").is_dir()
