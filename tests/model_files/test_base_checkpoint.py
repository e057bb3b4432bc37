"""A base model is found in a folder or in the hub's cache, and its fingerprint identifies it."""

from __future__ import annotations

import pytest
import torch
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
