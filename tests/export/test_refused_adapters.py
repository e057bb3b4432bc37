"""What cannot be merged is refused by its name, with exit code 7, and nothing is written."""

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


def lose_a_partner(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{Q0}.lora_B.weight"]


def halve_the_rank(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"][:2]
    tensors[f"{Q0}.lora_B.weight"] = tensors[f"{Q0}.lora_B.weight"][:, :2]


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q0}.lora_A.weight"] = torch.ones(4, 128)


def break_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q0}.lora_B.weight"][3, 1] = float("nan")


def add_a_stranger(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.ones(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_layer_nine, "layers.9.self_attn.q_proj.lora_A.weight matches no tensor"),
        (lose_a_partner, "layers.0.self_attn.q_proj.lora_A.weight has no partner"),
        (halve_the_rank, "layers.0.self_attn.q_proj.lora_A.weight has shape [2, 64], and"),
        (widen, "is for a weight of shape [64, 128], the base's is [64, 64]"),
        (add_a_stranger, "layers.0.self_attn.q_proj.lora_C.weight matches no tensor"),
    ],
)
def test_an_adapter_that_does_not_fit_its_base(command, tiny_model, tmp_path, change, message):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    edit_tensors(tmp_path / "adapter", change)
    check_refused(command, tmp_path, message)


def test_a_tensor_that_takes_no_part_in_the_merge(command, tiny_model, tmp_path):
    """Magnitudes of stacked experts, say: PEFT knows no DoRA for them, and would warn."""
    base = make_tiny_moe(tmp_path / "base")
    lora = {"target_modules": [], "target_parameters": ["down_proj"]}
    make_adapter(base, tmp_path / "adapter", lora)
    name = "base_model.model.model.layers.0.mlp.experts.lora_magnitude_vector"
    edit_tensors(tmp_path / "adapter", lambda tensors: tensors.update({name: torch.ones(64)}))
    check_refused(command, tmp_path, f"{name} has no part in the merge")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "IA3 adapters are not merged here"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base itself when training began"),
        ({"alora_invocation_tokens": [1]}, "an adapter with alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "an adapter with layer_replication"),
        ({"r": 8}, "adapter_config.json says rank 8"),
    ],
)
def test_a_config_that_asks_for_what_no_merge_can_do(
    command, tiny_model, tmp_path, values, message
):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    edit_config(tmp_path / "adapter", **values)
    check_refused(command, tmp_path, message)


def test_a_base_of_another_width(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    other = make_tiny_llama(tmp_path / "other", hidden=128)
    check_refused(command, tmp_path, "the base's is [", "--base", other)


def test_a_base_with_a_layer_more(command, tiny_model, tmp_path):
    """PEFT loads this without a word (peft 0.21) and leaves the third layer as it was."""
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj", "v_proj"]})
    other = make_tiny_llama(tmp_path / "other", layers=3)
    message = "it targets model.layers.2.self_attn"
    check_refused(command, tmp_path, message, "--base", other)


def test_a_base_of_the_same_shape_with_other_numbers(command, write_recipe, tmp_path):
    """The run recorded its base's fingerprint; nothing else could tell these two apart."""
    assert command("train", write_recipe()).code == 0
    other = make_tiny_llama(tmp_path / "other", seed=1)
    (tmp_path / "adapter").symlink_to(tmp_path / "run" / "adapter")
    message = "not the base that the adapter was trained on: "
    check_refused(command, tmp_path, message, "--base", other)
    allowed = command(
        "merge", tmp_path / "run", tmp_path / "m", "--base", other, "--allow-other-base"
    )
    assert allowed.code == 0


def test_dequantized_is_refused_where_nothing_was_quantised(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    message = "not trained on a quantised base"
    check_refused(command, tmp_path, message, "--onto", "dequantized")


def test_a_base_that_is_stored_in_another_quantisation(command, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", {"target_modules": "all-linear"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    check_refused(command, tmp_path, "stored quantised by gptq")


def test_two_adapters_that_cannot_be_added(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    make_adapter(tiny_model, tmp_path / "dora", {"target_modules": ["q_proj"], "use_dora": True})
    message = "a DoRA adapter cannot be merged together with another one"
    check_refused(command, tmp_path, message, "--with", tmp_path / "dora")


def test_a_resized_embedding_without_its_head(command, tiny_model, tmp_path):
    """PEFT saves the resized embedding that it adapts, and forgets the head's new rows."""
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    make_adapter(tiny_model, tmp_path / "adapter", lora, resized_tokens=408)
    check_refused(command, tmp_path, "embedding and head would have different numbers of rows")


def test_an_adapter_file_that_was_cut_off(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": "all-linear"})
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    check_refused(command, tmp_path, "not a whole safetensors file: it ends before")


def test_numbers_that_the_dtype_cannot_hold(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj"]}, scale=600.0)
    message = "self_attn.q_proj.weight has numbers that are not finite in torch.float16"
    check_refused(command, tmp_path, message, "--dtype", "float16")


def test_an_adapter_with_a_number_that_is_none(command, tiny_model, tmp_path):
    make_adapter(tiny_model, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    edit_tensors(tmp_path / "adapter", break_a_number)
    message = "layers.0.self_attn.q_proj.lora_B.weight has numbers that are not finite"
    check_refused(command, tmp_path, message)


def check_refused(command, tmp_path: Path, message: str, *arguments: object) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = command("merge", tmp_path / "adapter", tmp_path / "merged", *arguments)
    assert outcome.code == 7, outcome.stderr
    assert message in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == before
