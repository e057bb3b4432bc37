"""NF4 with the real bitsandbytes, on the CPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from lora_sft.errors import CapabilityError, ModelError
from lora_sft.model.base_model import load_base_model
from lora_sft.model.census import take_census
from lora_sft.model.quantization import dequantize, make_quantization_config
from lora_sft.recipe import ModelSection

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def load_nf4(folder):
    section = ModelSection(model_name_or_path=str(folder), dtype="bfloat16")
    return load_base_model(section, quantization=NF4)


def test_linear_layers_are_quantised_and_counted(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_nf4(tiny_model), LoraConfig(r=4, target_modules=["q_proj"]))
    rows = {row.kind: row for row in take_census(model).rows}
    # Per layer: q and o have 64x64 weights, k and v 32x64, gate, up and down 64x128.
    weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert rows["quantised"].parameters == weights
    assert rows["quantised"].dtype == "nf4 in uint8"
    assert weights / 2 < rows["quantised"].bytes < weights  # 4 bits per weight, and the constants
    assert rows["trained"].dtype == "float32"


def test_dequantising_after_inference_gives_the_same_weights(tiny_model):
    fresh = dequantize(load_nf4(tiny_model), torch.float32).state_dict()
    used = load_nf4(tiny_model).eval()
    with torch.no_grad():
        used(torch.arange(8)[None])
    used = dequantize(used, torch.float32).state_dict()
    assert fresh.keys() == used.keys()
    assert all(torch.equal(fresh[name], used[name]) for name in fresh)


def test_repacking_of_codes_is_switched_off_in_every_layer(tiny_model):
    switches = [
        module.support_avx512bf16_for_cpu
        for module in load_nf4(tiny_model).modules()
        if hasattr(module, "support_avx512bf16_for_cpu")
    ]
    assert len(switches) == 14
    assert not any(switches)


def test_the_error_for_missing_bitsandbytes_names_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError) as caught:
        make_quantization_config(NF4, torch.bfloat16, "my.yaml:3  quantization")
    assert caught.value.fix == "pip install 'lora-sft[qlora]'"


def test_loading_a_folder_without_a_model_is_a_model_error(tmp_path):
    section = ModelSection(model_name_or_path=str(tmp_path), dtype="float32")
    with pytest.raises(ModelError) as caught:
        load_base_model(section, where="my.yaml:1  model.model_name_or_path")
    assert caught.value.where.startswith("my.yaml:1  model.model_name_or_path")
    assert "config.json" in caught.value.fix
