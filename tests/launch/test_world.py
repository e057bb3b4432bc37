"""A world that is not the one that was asked for is refused before anything is loaded."""

from __future__ import annotations

import pytest

from lora_sft.errors import RecipeError
from lora_sft.launch.world import check_world


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, "accelerate"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes"),
        ({"LORA_SFT_WORLD_SIZE": "4"}, "4 processes were asked for, and this is one of 1"),
        ({"LORA_SFT_WORLD_SIZE": "4", "WORLD_SIZE": "2"}, "this is one of 2"),
    ],
)
def test_fewer_processes_than_asked_for_are_refused(environment, words):
    with pytest.raises(RecipeError) as caught:
        check_world(environment)
    assert words in caught.value.what
    assert "lora-sft launch RECIPE --gpus N" in caught.value.fix


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "ACCELERATE_MIXED_PRECISION": "no"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
        {"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "32"},
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"LORA_SFT_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
        {"LORA_SFT_PROCESSES": "4"},  # how many prepare the data
    ],
)
def test_the_world_that_was_asked_for_is_let_through(environment):
    check_world(environment)


def test_train_refuses_before_it_loads_anything(command, write_recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    outcome = command("train", write_recipe())
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 3
    assert not (tmp_path / "run").exists()
