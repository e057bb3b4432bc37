"""Each process has a GPU of its own."""

from __future__ import annotations

import pytest
import torch

from lora_sft.errors import EXIT_RECIPE, RecipeError
from lora_sft.model.base_model import find_device
from lora_sft.processes.this_process import check_devices


@pytest.mark.parametrize("num_gpus", [0, 1, 4, 8])
def test_four_processes_are_accepted_if_each_has_or_sees_its_own_gpu(num_gpus):
    check_devices({"LOCAL_WORLD_SIZE": "4"}, num_gpus)


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(RecipeError) as caught:
        check_devices({"LOCAL_WORLD_SIZE": "4"}, 2)
    assert caught.value.exit_code == EXIT_RECIPE
    assert str(caught.value) == (
        "error: 4 processes were started on this machine, but it has 2 GPUs\n"
        "where: LOCAL_WORLD_SIZE\n"
        "fix:   start one process per GPU: lora-sft launch RECIPE --gpus 2"
    )


def test_a_single_process_may_see_several_gpus():
    check_devices({}, 8)


@pytest.mark.parametrize(("rank", "seen", "index"), [("3", 1, 0), ("3", 8, 3), ("0", 2, 0)])
def test_the_device_is_the_same_as_accelerates(rank, seen, index, monkeypatch):
    """Some launchers show each process only its own GPU. Its index is then 0 on every rank."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert find_device() == torch.device("cuda", index)
