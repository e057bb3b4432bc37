"""The files of `lora-sft launch --write` are accepted by bash, accelerate and DeepSpeed."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def written(command, write_recipe, tmp_path):
    """The folder with the files for four machines with eight GPUs each."""
    outcome = command(
        *("launch", write_recipe(), "train.max_steps=9", "--nodes", "4", "--gpus", "8"),
        *("--slurm", "--write", tmp_path / "out", "--hosts", "a,b"),
    )
    assert outcome.code == 0, outcome.stderr
    assert [line.rsplit("/", 1)[-1] for line in outcome.stdout.splitlines()] == [
        "job.sbatch",
        "hostfile",
        "accelerate.yaml",
    ]
    return tmp_path / "out"


def test_the_batch_script_is_valid_bash_and_starts_the_same_recipe(written, tmp_path):
    script = written / "job.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    for line in ("#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=8"):
        assert line in text
    assert f"#SBATCH --chdir={shlex.quote(str(Path.cwd()))}" in text
    (started,) = [line for line in text.splitlines() if line.startswith("srun ")]
    words = shlex.split(started.rstrip(" &"))
    assert words[words.index("launch") + 1 :][:2] == [
        str(tmp_path / "recipe.yaml"),
        "train.max_steps=9",
    ]
    assert {"--nodes=4", "--gpus=8", "--rendezvous"} <= set(words)


def test_the_batch_script_queues_the_job_again_after_exit_code_75(written, tmp_path):
    """SLURM's programs are replaced by scripts that note how they were called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {
        "srun": f"echo cpus $SRUN_CPUS_PER_TASK >> {tmp_path}/calls; exit 75",
        "scontrol": f'[ "$1" = show ] && echo first || echo "$@" >> {tmp_path}/calls',
        "scancel": f'echo scancel "$@" >> {tmp_path}/calls',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    finished = subprocess.run(
        ["bash", str(written / "job.sbatch")],
        env={
            **{"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x"},
            "SLURM_CPUS_PER_TASK": "6",
        },
        check=False,
        timeout=30,
    )
    assert finished.returncode == 75
    assert (tmp_path / "calls").read_text() == "cpus 6\nrequeue 7\n"


@pytest.mark.parametrize("options", [["--overwrite"], ["--resume", "never"], ["--resume", "x"]])
@pytest.mark.parametrize("way", [["--slurm"], ["--write", "out"]])
def test_options_that_would_lose_the_run_of_a_requeued_job_are_refused(
    options, way, command, write_recipe, tmp_path, monkeypatch
):
    recipe = write_recipe()
    monkeypatch.chdir(tmp_path)
    outcome = command("launch", recipe, "--gpus", "2", *way, *options)
    assert outcome.code == 2
    assert f"{' '.join(options)} would be repeated" in outcome.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


def test_the_batch_script_trusts_the_checkpoint_if_launch_does(command, write_recipe, tmp_path):
    outcome = command(
        *("launch", write_recipe(), "--gpus", "2", "--write", tmp_path / "out"),
        "--trust-checkpoint",
    )
    assert outcome.code == 0, outcome.stderr
    assert " --trust-checkpoint " in (tmp_path / "out" / "job.sbatch").read_text()


def test_accelerate_reads_the_configuration(written):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(written / "accelerate.yaml"))
    assert (config.num_machines, config.num_processes) == (4, 32)
    assert config.main_process_ip == "a"
    assert str(config.distributed_type).endswith("MULTI_GPU")


def test_deepspeed_reads_the_hostfile(written):
    pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
    from deepspeed.launcher.runner import fetch_hostfile

    hosts = fetch_hostfile(str(written / "hostfile"))
    assert dict(hosts) == {"a": 8, "b": 8, "node-3": 8, "node-4": 8}


def test_several_machines_need_a_rendezvous(command, write_recipe):
    outcome = command("launch", write_recipe(), "--nodes", "2", "--gpus", "1")
    assert outcome.code == 2
    assert "--rendezvous HOST:PORT" in outcome.stderr


def test_slurm_without_sbatch_is_refused(command, write_recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = command("launch", write_recipe(), "--gpus", "2", "--slurm")
    assert outcome.code == 5
    assert "the program sbatch is not on this machine" in outcome.stderr
