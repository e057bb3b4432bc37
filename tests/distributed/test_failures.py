"""What two processes do when a step, a save or the launch goes wrong."""

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
    ("base", "spread"),
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
def test_a_gradient_that_is_no_number_ends_the_run_and_keeps_nothing_of_it(
    base, spread, tmp_path, shared_model
):
    """ZeRO would leave the step out, with a warning, and go on."""
    recipe = write_recipe_for(tmp_path, shared_model, base, spread, "run", max_steps=4)
    outcome = run_module("tests.distributed.poison", "train", recipe, POISON="2")
    assert outcome.code != 0
    status = read_status(tmp_path)
    assert status["exit_code"] == 6, outcome.stderr
    assert "the gradient is " in status["reason"]
    assert "at optimizer step 2" in status["reason"]
    assert list(read_metrics(tmp_path / "run", "loss")) == [1]
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert not (tmp_path / "run" / "adapter").exists()


# A small disk for the run directory alone; gone with the namespace.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size}k tmpfs "$1" || exit 99
shift; folder=$1; shift
"$@"; code=$?
cp "$folder/run/status.json" "$folder/status-kept.json"
ls "$folder/run/checkpoints" > "$folder/checkpoints-kept"
exit $code
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_named_with_its_path_and_older_checkpoints_stay(
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
        pytest.skip("NO MOUNT NAMESPACES HERE")
    status = json.loads((tmp_path / "status-kept.json").read_text())
    assert status["exit_code"] == 6, outcome.stderr
    assert f"no room on the disk of {tmp_path / 'run'}" in status["reason"]
    assert "MB free" in status["reason"]
    assert "Traceback" not in outcome.stderr.partition("failed (exitcode")[0]
    kept = (tmp_path / "checkpoints-kept").read_text().split()
    assert f"checkpoint-{status['step']}" in kept


def train_on_two_machines(recipe, changes):
    """What each of two torchruns says, one process each; `changes`: of the recipe, for each."""
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


def test_machines_that_do_not_share_the_output_folder_are_told_so(tmp_path, shared_model):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run")
    changes = [f"output_dir={tmp_path / f'disk-{node}'}" for node in range(2)]
    for said in train_on_two_machines(recipe, changes):
        assert "error: output_dir is not shared by all machines" in said
        assert "put it on a file system that all machines see" in said
    assert json.loads((tmp_path / "disk-0" / "status.json").read_text())["exit_code"] == 2


def test_machines_whose_data_differ_train_nothing(tmp_path, shared_model):
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run")
    source = tmp_path / "train.jsonl"
    shorter = tmp_path / "shorter.jsonl"
    lines = source.read_text().splitlines(keepends=True)
    shorter.write_text("".join(lines[:-1]))  # the last one is for validation
    changes = [f"data.datasets.0.path={path}" for path in (source, shorter)]
    for node, said in enumerate(train_on_two_machines(recipe, changes)):
        assert f"process {1 - node} has other validation rows than process {node}" in said
        assert "give every machine the same files" in said
    assert read_status(tmp_path)["exit_code"] == 3
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_ctrl_c_on_any_process_is_ctrl_c_for_all(tmp_path, shared_model):
    """The exit code and `status.json` say the same, whichever process was signalled."""
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


def test_a_failed_export_is_the_code_of_the_launch(tmp_path, shared_model):
    """The other process is done by then, and leaves no code that would hide it."""
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
    (target / "mine").write_text("somebody else was faster")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 7, said
    assert read_status(tmp_path)["exit_code"] == 7
