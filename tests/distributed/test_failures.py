"""A run of two processes ends with the right error if a step, a save or the start fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

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


@pytest.mark.parametrize(
    ("base", "setting"),
    [
        ("lora", "ddp"),
        ("lora", "zero0"),
        ("lora", "zero1"),
        ("lora", "zero2_offload"),
        ("lora", "zero3"),
        ("qlora", "zero2"),
        ("qlora", "zero3"),
    ],
)
def test_a_nan_gradient_ends_the_run_and_nothing_of_the_step_is_saved(
    base, setting, tmp_path, shared_model
):
    """ZeRO would skip the step with a warning and continue."""
    recipe = write_recipe_for(tmp_path, shared_model, base, setting, "run", max_steps=4)
    outcome = run_module("tests.distributed.poison", "train", recipe, POISON="2")
    assert outcome.code != 0
    status = read_status(tmp_path)
    assert status["exit_code"] == 6, outcome.stderr
    assert "the gradient is " in status["reason"]
    assert "at optimizer step 2" in status["reason"]
    assert list(read_metrics(tmp_path / "run", "loss")) == [1]
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert not (tmp_path / "run" / "adapter").exists()


# Mounts a small disk for the run directory; it is removed with the mount namespace.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size}k tmpfs "$1" || exit 99
shift; folder=$1; shift
"$@"; code=$?
cp "$folder/run/status.json" "$folder/status-kept.json"
ls "$folder/run/checkpoints" > "$folder/checkpoints-kept"
exit $code
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_the_path_of_a_full_disk_is_named_and_older_checkpoints_stay(
    processes, tmp_path, shared_model
):
    recipe = write_recipe_for(
        tmp_path, shared_model, "lora", "ddp", "run", save_steps=1, save_total_limit=None
    )
    (tmp_path / "run").mkdir()
    torchrun = ["-m", "torch.distributed.run", f"--master_port={find_free_port()}"]
    torchrun += [f"--nproc_per_node={processes}"]
    command = [sys.executable, *torchrun, "-m", "lora_sft", "train", recipe]
    script = ON_A_SMALL_DISK.format(size=800)
    outcome = run_process(
        *("unshare", "-rm", "sh", "-c", script, "sh", tmp_path / "run", tmp_path, *command)
    )
    if outcome.code == 99 or "unshare failed" in outcome.stderr:
        pytest.skip("MOUNT NAMESPACES ARE NOT AVAILABLE")
    status = json.loads((tmp_path / "status-kept.json").read_text())
    assert status["exit_code"] == 6, outcome.stderr
    assert f"the disk of {tmp_path / 'run'} is full" in status["reason"]
    assert "MB free" in status["reason"]
    assert "Traceback" not in outcome.stderr.partition("failed (exitcode")[0]
    kept = (tmp_path / "checkpoints-kept").read_text().split()
    assert f"checkpoint-{status['step']}" in kept


def train_on_two_machines(recipe, changes):
    """Run two torchruns with one process each, and return the stderr of each.

    `changes`: one override of the recipe for each.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    torchrun += ["--master_addr=127.0.0.1", f"--master_port={find_free_port()}"]
    started = [
        subprocess.Popen(
            [*torchrun, f"--node_rank={node}", "-m", "lora_sft", "train", str(recipe), change],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for node, change in enumerate(changes)
    ]
    return [process.communicate(timeout=120)[1] for process in started]


def test_machines_that_do_not_share_the_output_directory_are_refused(tmp_path, shared_model):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run")
    changes = [f"output_dir={tmp_path / f'disk-{node}'}" for node in range(2)]
    for stderr in train_on_two_machines(recipe, changes):
        assert "error: output_dir is not shared by all machines" in stderr
        assert "a file system that all machines share" in stderr
    assert json.loads((tmp_path / "disk-0" / "status.json").read_text())["exit_code"] == 2


def test_machines_with_different_data_are_refused(tmp_path, shared_model):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run")
    source = tmp_path / "train.jsonl"
    shorter = tmp_path / "shorter.jsonl"
    lines = source.read_text().splitlines(keepends=True)
    shorter.write_text("".join(lines[:-1]))  # the last row is a validation row
    changes = [f"data.datasets.0.path={path}" for path in (source, shorter)]
    for node, stderr in enumerate(train_on_two_machines(recipe, changes)):
        assert (
            f"the validation rows of process {1 - node} differ from those of process {node}"
            in stderr
        )
        assert "give every machine the same files" in stderr
    assert read_status(tmp_path)["exit_code"] == 3
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_ctrl_c_on_one_process_stops_all(tmp_path, shared_model):
    """The exit code and `status.json` are the same, whichever process receives the signal."""
    recipe = write_recipe_for(
        tmp_path, shared_model, "lora", "ddp", "run", max_steps=200, save_steps=500
    )
    command = [sys.executable, "-m", "lora_sft", "launch", str(recipe), "--gpus", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    (beat,) = (tmp_path / "run").glob("processes/*/beat-1.json")
    os.kill(json.loads(beat.read_text())["pid"], signal.SIGINT)
    assert launcher.wait(timeout=120) == 130
    assert read_status(tmp_path)["exit_code"] == 130
    assert "SIGINT" in read_status(tmp_path)["reason"]


def test_launch_returns_the_exit_code_of_a_failed_export(tmp_path, shared_model):
    """The other process has succeeded by then. Its code must not hide that of rank 0."""
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run", max_steps=1)
    target = tmp_path / "merged"
    document = {**json.loads(recipe.read_text()), "export": {"merge": str(target)}}
    recipe.write_text(json.dumps(document))
    command = [sys.executable, "-m", "lora_sft", "launch", str(recipe), "--gpus", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not metrics.exists():
        time.sleep(0.05)
    target.mkdir()
    (target / "mine").write_text("a file of the user")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 7, stderr
    assert read_status(tmp_path)["exit_code"] == 7
