"""A base quantised to four bits needs less GPU memory."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from tests.gpu.kinds import LORA, QLORA
from tests.tiny import make_tiny_llama

pytestmark = pytest.mark.gpu

MIB = 2**20


@pytest.fixture
def larger_model(tmp_path):
    """A model of about 75 million weights: they take most of the GPU memory of a short run."""
    return make_tiny_llama(tmp_path / "larger", hidden=1024, layers=8, heads=16, key_value_heads=8)


def test_a_four_bit_base_trains_in_less_memory(cuda, train, write_recipe, tmp_path, larger_model):
    peaks = {}
    for name, sections in (("lora", LORA), ("qlora", QLORA)):
        model = {**sections["model"], "model_name_or_path": str(larger_model)}
        recipe = write_recipe(
            f"{name}.yaml",
            **{**sections, "model": model},
            train={"max_steps": 2, "gradient_checkpointing": True},
            output_dir=str(tmp_path / name),
        )
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train(recipe, tmp_path / name)
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / MIB
    manifest = json.loads((tmp_path / "lora" / "manifest.json").read_text())
    weights = manifest["census"]["total_parameters"]
    assert peaks["lora"] > 2 * weights / MIB, "the base was not on the GPU"
    assert peaks["qlora"] < peaks["lora"] - weights / MIB, peaks
