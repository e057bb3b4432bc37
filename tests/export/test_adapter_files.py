"""A saved adapter is read from disk and checked before the run ends."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lora_sft.errors import ExportError
from lora_sft.export.adapter_files import check_adapter_file
from lora_sft.export.public_text import name_base

A, B = "m.q_proj.lora_A.weight", "m.q_proj.lora_B.weight"


def test_a_trained_adapter_passes(tmp_path):
    save_file({A: torch.ones(2, 4), B: torch.ones(4, 2)}, tmp_path / "a.safetensors")
    check_adapter_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "the saved adapter is empty"),
        ({A: torch.ones(2, 4), B: torch.ones(0, 2)}, "lora_B.weight has no elements"),
        ({A: torch.ones(2, 4), B: torch.zeros(4, 2)}, "nothing was learned"),
    ],
)
def test_an_empty_or_untrained_adapter_is_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=message):
        check_adapter_file(tmp_path / "a.safetensors")


def test_the_public_name_of_a_local_base_model_is_its_folder_name(tmp_path):
    assert name_base(str(tmp_path / "my-base")) == "my-base"
    assert name_base("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
