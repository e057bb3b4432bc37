"""An adapter that cannot be merged is refused with exit code 7, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.adapters import make_adapter, make_tiny_moe
from tests.tiny import make_tiny_llama

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def add_layer_nine(tensors: dict[str, torch.Tensor]) -> None:
    for part in ("A", "B"):
        name = f"{Q0}.lora_{part}.weight"
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()


def delete_one_b_matrix(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{Q0}.lora_B.weight"]


def halve_the_rank(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"][:2]
    tensors[f"{Q0}.lora_B.weight"] = tensors[f"{Q0}.lora_B.weight"][:, :2]


def widen_one_a_matrix(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q0}.lora_A.weight"] = torch.ones(4, 128)


def write_one_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q0}.lora_B.weight"][3, 1] = float("nan")


def add_an_unknown_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.ones(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_layer_nine, "layers.9.self_attn.q_proj.lora_A.weight matches no tensor"),
        (delete_one_b_matrix, "layers.0.self_attn.q_proj.lora_A.weight cannot be merged: "),
        (halve_the_rank, "layers.0.self_attn.q_proj.lora_A.weight has shape [2, 64], but"),
        (
            widen_one_a_matrix,
            "a weight of shape [64, 128], but the base model's weight has shape [64, 64]",
        ),
        (add_an_unknown_tensor, "layers.0.self_attn.q_proj.lora_C.weight matches no tensor"),
    ],
)
def test_an_adapter_that_does_not_fit_its_base_model_is_refused(
    command, tiny_model, tmp_path, change, message
):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    edit_tensors(tmp_path / "adapter", change)
    check_refused(command, tmp_path, message)


def test_an_adapter_tensor_that_is_never_used_is_refused(command, tiny_model, tmp_path):
    """PEFT has no DoRA for stacked experts, and only warns of their magnitudes."""
    base = make_tiny_moe(tmp_path / "base")
    lora = {"target_modules": [], "target_parameters": ["down_proj"]}
    make_adapter(base, tmp_path / "adapter", lora)
    name = "base_model.model.model.layers.0.mlp.experts.lora_magnitude_vector"
    edit_tensors(tmp_path / "adapter", lambda tensors: tensors.update({name: torch.ones(64)}))
    check_refused(command, tmp_path, f"{name} cannot be merged")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "adapters of type IA3 cannot be merged, only LORA adapters"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base model itself when training"),
        ({"alora_invocation_tokens": [1]}, "an adapter with alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "an adapter with layer_replication"),
        ({"r": 8}, "adapter_config.json gives rank 8"),
    ],
)
def test_a_config_field_that_makes_a_merge_impossible_is_refused(
    command, tiny_model, tmp_path, values, message
):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    edit_config(tmp_path / "adapter", **values)
    check_refused(command, tmp_path, message)


def test_a_base_model_with_another_hidden_size_is_refused(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    other = make_tiny_llama(tmp_path / "other", hidden=128)
    check_refused(command, tmp_path, "the base model's weight has shape [", "--base", other)


def test_a_base_model_with_more_layers_is_refused(command, tiny_model, tmp_path):
    """peft 0.21 loads this adapter without a warning and does not change the third layer."""
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj", "v_proj"]})
    other = make_tiny_llama(tmp_path / "other", layers=3)
    message = "it targets model.layers.2.self_attn"
    check_refused(command, tmp_path, message, "--base", other)


def test_a_base_model_of_the_same_shape_with_other_weights_is_refused(
    command, write_recipe, tmp_path
):
    """Only the fingerprint that the run recorded shows that this is another base model."""
    assert command("train", write_recipe()).code == 0
    other = make_tiny_llama(tmp_path / "other", seed=1)
    (tmp_path / "adapter").symlink_to(tmp_path / "run" / "adapter")
    message = "not the base model that the adapter was trained on: "
    check_refused(command, tmp_path, message, "--base", other)
    allowed = command(
        "merge", tmp_path / "run", tmp_path / "m", "--base", other, "--allow-other-base"
    )
    assert allowed.code == 0


def test_onto_dequantized_is_refused_if_training_did_not_quantise(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    message = "does not record that its base model was quantised in training"
    check_refused(command, tmp_path, message, "--onto", "dequantized")


def test_a_base_model_that_is_stored_in_another_quantisation_is_refused(command, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", {"target_modules": "all-linear"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    check_refused(command, tmp_path, "stored quantised by gptq")


def test_a_dora_adapter_cannot_be_merged_together_with_another_adapter(
    command, tiny_model, tmp_path
):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    make_adapter(tiny_model, tmp_path / "dora", {"target_modules": ["q_proj"], "use_dora": True})
    message = "a DoRA adapter cannot be merged together with another adapter"
    check_refused(command, tmp_path, message, "--with", tmp_path / "dora")


def test_a_resized_embedding_without_a_resized_head_is_refused(command, tiny_model, tmp_path):
    """PEFT saves the resized embedding that it adapts, but not the new rows of the head."""
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    make_adapter(tiny_model, tmp_path / "adapter", lora, resized_tokens=408)
    check_refused(command, tmp_path, "embedding and head would have different numbers of rows")


def test_an_incomplete_adapter_file_is_refused(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    check_refused(command, tmp_path, "not a complete safetensors file: it ends before")


def test_numbers_that_float16_cannot_hold_are_refused(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj"]}, scale=600.0)
    message = "self_attn.q_proj.weight has numbers that are not finite in torch.float16"
    check_refused(command, tmp_path, message, "--dtype", "float16")


def test_an_adapter_that_holds_nan_is_refused(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    edit_tensors(tmp_path / "adapter", write_one_nan)
    message = "layers.0.self_attn.q_proj.lora_B.weight has numbers that are not finite"
    check_refused(command, tmp_path, message)


def check_refused(command, tmp_path: Path, message: str, *arguments: object) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = command("merge", tmp_path / "adapter", tmp_path / "merged", *arguments)
    assert outcome.code == 7, outcome.stderr
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == before
