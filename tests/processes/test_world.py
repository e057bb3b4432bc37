"""A run with another number of processes than asked for is refused before anything is loaded."""

from __future__ import annotations

import pytest

from lora_sft.errors import RecipeError
from lora_sft.processes.world import check_world
from tests.commands import run_lora_sft


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
                "ACCELERATE_MIXED_PRECISION": "no",
            },
            "accelerate",
        ),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes"),
        ({"LORA_SFT_WORLD_SIZE": "4"}, "4 processes were asked for, but the world size is 1"),
        (
            {"LORA_SFT_WORLD_SIZE": "4", "WORLD_SIZE": "2"},
            "but the world size is 2",
        ),
    ],
)
def test_another_number_of_processes_than_asked_for_is_refused(environment, words):
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
        {"ACCELERATE_MIXED_PRECISION": "bf16", "MASTER_ADDR": "h"},  # the user's shell may set it
        {"MASTER_ADDR": "h", "MASTER_PORT": "29500"},
        {"LOCAL_RANK": "-1"},
        {"PMI_SIZE": ""},
        {"LORA_SFT_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
        {"LORA_SFT_PROCESSES": "4"},  # the number of processes that prepare the data
    ],
)
def test_the_expected_number_of_processes_is_accepted(environment):
    check_world(environment)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")],
        *[("RANK", "zero"), ("PMI_SIZE", "x"), ("LORA_SFT_WORLD_SIZE", "two")],
    ],
)
def test_a_variable_that_is_not_an_integer_is_refused_by_its_name(name, text):
    with pytest.raises(RecipeError) as caught:
        check_world({name: text})
    what = f"the environment variable {name} is {text!r}, which is not an integer"
    assert caught.value.what == what
    assert caught.value.fix.startswith(f"unset {name}")


def test_an_empty_rank_gives_an_error_of_three_lines(write_recipe, tmp_path):
    outcome = run_lora_sft("train", write_recipe(), RANK="", WORLD_SIZE="")
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 3
    assert outcome.stderr.startswith("error: the environment variable RANK is ''")
    assert not (tmp_path / "run").exists()


def test_train_refuses_before_it_loads_anything(command, write_recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    outcome = command("train", write_recipe())
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 3
    assert not (tmp_path / "run").exists()
