"""A base model is found in a folder or in the hub's cache, and its fingerprint identifies it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_sft.errors import ModelError
from lora_sft.model_files.base_checkpoint import read_base_checkpoint
from lora_sft.model_files.fingerprint import fingerprint_base
from tests.export.adapters import make_adapter
from tests.tiny import make_tiny_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_fingerprint_does_not_depend_on_how_weights_are_split_into_files(tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "cut", max_shard_size="200KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    whole, cut = (
        fingerprint_base(read_base_checkpoint(str(folder))) for folder in (base, tmp_path / "cut")
    )
    assert whole == cut
    assert 1 <= len(whole["samples"]) <= 32


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_changing_one_value_changes_the_fingerprint(tmp_path, name):
    base = make_tiny_llama(tmp_path / "base")
    before = fingerprint_base(read_base_checkpoint(str(base)))
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, {"format": "pt"})
    assert fingerprint_base(read_base_checkpoint(str(base)))["sha256"] != before["sha256"]


def test_a_base_model_on_the_hub_is_read_from_the_cache(command, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--me--base"
    make_tiny_llama(cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    make_adapter(cache / "snapshots" / COMMIT, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    outcome = command(
        "merge", tmp_path / "adapter", tmp_path / "merged", "--base", "me/base", "--json"
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["correctness"]["passed"]


def test_a_missing_base_model_or_one_without_safetensors_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="cannot find the base model"):
        read_base_checkpoint("nobody/nothing")
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        read_base_checkpoint(str(tmp_path))


def move_weights_out(base, place, name, index="model.safetensors.index.json"):
    """Move the weights of a base model to `place`. Its index then names them by `name`."""
    with safe_open(base / "model.safetensors", "pt") as file:
        weight_map = dict.fromkeys(file.keys(), name)
    (base / "model.safetensors").rename(place)
    (base / index).parent.mkdir(exist_ok=True)
    (base / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["parent", "hidden parent", "absolute"])
def test_weights_outside_of_the_base_models_folder_are_refused(
    command, write_recipe, tmp_path, kind
):
    base, outside = make_tiny_llama(tmp_path / "base"), tmp_path / "outside.safetensors"
    parents = {"parent": "../", "hidden parent": "sub/../../", "absolute": f"{tmp_path}/"}
    name = f"{parents[kind]}outside.safetensors"
    (base / "sub").mkdir()
    move_weights_out(base, outside, name)
    outcome = command("train", write_recipe(model={"model_name_or_path": str(base)}))
    assert outcome.code == 4
    assert f"names a file of weights outside of its folder: {name}" in outcome.stderr
    assert f"where: {base / 'model.safetensors.index.json'}" in outcome.stderr
    make_adapter(make_tiny_llama(tmp_path / "other"), tmp_path / "adapter", {})
    merged = command("merge", tmp_path / "adapter", tmp_path / "merged", "--base", base)
    assert merged.code == 4
    assert "outside of its folder" in merged.stderr


def test_an_index_that_the_config_names_is_checked_too(command, write_recipe, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    index = "sub/model.safetensors.index.json"
    move_weights_out(base, tmp_path / "outside.safetensors", "../outside.safetensors", index)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "transformers_weights": index}))
    outcome = command("train", write_recipe(model={"model_name_or_path": str(base)}))
    assert outcome.code == 4
    assert "outside of its folder" in outcome.stderr


def test_an_index_that_is_no_index_is_a_model_error(command, write_recipe, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    outcome = command("train", write_recipe(model={"model_name_or_path": str(base)}))
    assert outcome.code == 4
    assert "error: model.safetensors.index.json: weight_map must be an object" in outcome.stderr
