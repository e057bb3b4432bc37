"""A QLoRA adapter is merged onto the base model as it was in training.

The report shows what another form of the base model would cost.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_sft.export.proof.verification import compare_logits, compute_logits
from lora_sft.export.weights.base_form import TrainedForm
from lora_sft.export.weights.parameter_names import ParameterNames
from lora_sft.export.weights.tensor_reading import TensorReader
from lora_sft.model.base_model import load_base_model
from lora_sft.model.quantization import dequantize
from lora_sft.model_files.base_checkpoint import read_base_checkpoint
from lora_sft.recipe import ModelSection
from tests.export.adapters import IDS, answer, make_adapter, make_tiny_gpt2
from tests.tiny import make_tiny_llama

NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
INT8 = {"load_in_8bit": True}


def load_quantised(base: Path, fields: dict[str, object]) -> torch.nn.Module:
    section = ModelSection(model_name_or_path=str(base), dtype="bfloat16")
    return load_base_model(section, quantization=fields, device=torch.device("cpu"))


@pytest.fixture
def qlora_run(command, write_recipe, tmp_path):
    recipe = write_recipe(
        model={"dtype": "bfloat16"},
        quantization="nf4",
        train={"max_steps": 20, "learning_rate": 2e-2},
    )
    assert command("train", recipe).code == 0
    return tmp_path / "run"


def test_the_dequantised_base_model_has_the_least_shift_and_requantising_the_most(
    command, qlora_run, tiny_model, tmp_path
):
    dequantized = command("merge", qlora_run, tmp_path / "dequantized", "--json")
    original = command("merge", qlora_run, tmp_path / "original", "--onto", "original", "--json")
    assert dequantized.code == original.code == 0
    assert dequantized.json["onto"] == "dequantized"
    assert original.json["onto"] == "original"
    choices = dequantized.json["shift"]["choices"]
    assert choices["dequantized"]["mean_kl"] == dequantized.json["shift"]["mean_kl"]
    assert choices["original"]["mean_kl"] == pytest.approx(
        original.json["shift"]["mean_kl"], rel=0.05
    )
    assert {"loss", "loss_as_trained", "held_out_rows"} <= choices["original"].keys()
    rows = json.loads((qlora_run / "validation_sample.json").read_text())["rows"]
    prompts = [row["input_ids"] for row in rows]
    trained = PeftModel.from_pretrained(load_quantised(tiny_model, NF4), qlora_run / "adapter")
    reference = compute_logits(trained, prompts)
    in_place = trained.merge_and_unload()
    requantised = compare_logits(reference, compute_logits(in_place, prompts)).mean_kl
    shifts = [
        compare_logits(reference, compute_logits(load_folder(folder), prompts)).mean_kl
        for folder in (tmp_path / "dequantized", tmp_path / "original")
    ]
    assert shifts[0] < shifts[1] < requantised
    config = json.loads((tmp_path / "dequantized" / "config.json").read_text())
    assert "quantization_config" not in config
    assert load_file(tmp_path / "dequantized" / "model.safetensors").keys() == (
        load_file(tiny_model / "model.safetensors").keys()
    )


def test_trained_on_gives_the_quantisation_of_an_adapter_that_does_not_record_it(
    command, tiny_model, tmp_path
):
    """PEFT's own config does not record that the base model was quantised in training."""
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    merge = ("merge", tmp_path / "adapter", tmp_path / "merged", "--verify", "tensors", "--json")
    outcome = command(*merge, "--trained-on", "nf4")
    assert outcome.json["onto"] == "dequantized"
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    trained = PeftModel.from_pretrained(
        dequantize(load_quantised(tiny_model, NF4), torch.bfloat16).float(), tmp_path / "adapter"
    )
    for name, tensor in trained.merge_and_unload().state_dict().items():
        assert torch.equal(merged[name], tensor.bfloat16()), name


def load_folder(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("fields", [NF4, INT8], ids=["nf4", "int8"])
@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_gpt2], ids=["llama", "gpt2"])
def test_every_tensor_is_dequantised_to_the_same_values_as_in_the_library(tmp_path, fields, make):
    base = make(tmp_path / "base")
    checkpoint = read_base_checkpoint(str(base))
    form = TrainedForm(ParameterNames(checkpoint), fields, torch.bfloat16)
    model = load_quantised(base, fields)
    with torch.inference_mode():
        model(IDS)  # bitsandbytes repacks the codes here on some CPUs
    state = dequantize(model, torch.bfloat16).state_dict()
    changed = 0
    with TensorReader() as reader:
        for name, tensor in checkpoint.tensors.items():
            if name not in state:
                continue
            values = form.read_values(tensor, reader)
            assert values is not None  # stored in float32, but bfloat16 in training
            expected = state[name]
            if expected.shape != values.shape or is_conv1d(name, make):
                expected = expected.T  # transformers dequantises a Conv1D to a linear layer
            assert torch.equal(values, expected), name
            changed += not torch.equal(values, reader.read(tensor).bfloat16())
    assert changed == (14 if make is make_tiny_llama else 8)


def is_conv1d(name: str, make: object) -> bool:
    return make is make_tiny_gpt2 and ".c_" in name and name.endswith(".weight")


@pytest.mark.parametrize("fields", [NF4, INT8], ids=["nf4", "int8"])
def test_a_base_model_that_is_stored_quantised_is_dequantised(command, tmp_path, fields):
    source = make_tiny_llama(tmp_path / "source")
    base = tmp_path / "base"
    model = load_quantised(source, fields)
    model.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).write_bytes((source / name).read_bytes())
    make_adapter(source, tmp_path / "adapter", {"target_modules": "all-linear"})
    merge = ("merge", tmp_path / "adapter", tmp_path / "merged", "--base", base)
    refused = command(*merge, "--onto", "original")
    assert refused.code == 7
    assert "so it has no original form" in refused.stderr
    assert not (tmp_path / "merged").exists()
    outcome = command(*merge, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["onto"] == "dequantized"
    assert outcome.json["correctness"]["passed"]
    assert outcome.json["correctness"]["tensors"]["merged"] == 14
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == load_file(source / "model.safetensors").keys()
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    adapted = PeftModel.from_pretrained(
        dequantize(load_quantised(source, fields), torch.bfloat16).float(), tmp_path / "adapter"
    )
    assert (adapted.eval()(IDS).logits - answer(tmp_path / "merged").float()).abs().max() < 0.05


def test_an_error_names_a_quantised_layer_whose_weight_is_missing(command, tmp_path):
    source = make_tiny_llama(tmp_path / "source")
    model = load_quantised(source, NF4)
    model.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    make_adapter(source, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    outcome = command(
        "merge", tmp_path / "adapter", tmp_path / "merged", "--base", tmp_path / "base"
    )
    assert outcome.code == 7
    assert "parts of model.layers.0.mlp.up_proj.weight, but not the weight" in outcome.stderr
