"""A model that cannot be loaded, or that cannot compute, gives an error that names the reason."""

from __future__ import annotations

import json
import resource
import time

import pytest
import torch

from lora_sft.errors import ModelError
from lora_sft.model.base_model import build_without_weights, load_base_model, read_stored_dtype
from lora_sft.model.computing import computing_errors
from lora_sft.recipe import ModelSection
from tests.tiny import make_tiny_llama


@pytest.fixture
def base(tmp_path):
    return make_tiny_llama(tmp_path / "base")


def change_config(base, **changes):
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(base):
    return load_base_model(ModelSection(model_name_or_path=str(base), dtype="float32"))


def test_a_cut_file_of_weights_is_named(base):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="not a complete safetensors file: it ends") as caught:
        load(base)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("num_hidden_layers", 10**9, "a model with 1,000,000,000 layers, and its files hold 2"),
        ("vocab_size", 10**8, "parameters, and its files hold at most"),
        ("intermediate_size", 10**8, "parameters, and its files hold at most"),
        ("hidden_size", -64, "cannot load a causal language model"),
    ],
)
def test_a_size_that_the_files_do_not_have_takes_neither_memory_nor_time(
    base, field, value, reason
):
    change_config(base, **{field: value})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for build in (load, lambda folder: build_without_weights(str(folder), None)):
        with pytest.raises(ModelError, match=reason):
            build(base)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # KiB
    assert time.process_time() < started + 20


def test_a_config_that_fits_its_files_loads_with_tied_weights_too(tmp_path):
    base = make_tiny_llama(tmp_path / "tied", tied=True)
    assert load(base).config.tie_word_embeddings


def test_an_error_inside_the_computation_names_the_model_and_the_line(base):
    change_config(base, attention_dropout=5.0)
    model = load(base).train()
    with pytest.raises(ModelError) as caught, computing_errors("some/model"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert "RuntimeError" in caught.value.what
    assert "dropout probability has to be between 0 and 1" in caught.value.what
    assert caught.value.where == "some/model"
    assert "config.json may be damaged" in caught.value.fix


def test_an_error_outside_of_the_model_is_not_changed():
    with pytest.raises(ValueError, match="mine"), computing_errors("some/model"):
        raise ValueError("mine")


def test_a_small_model_may_have_more_buffers_than_parameters(tmp_path):
    """Each layer of GPT-2 has a mask of all pairs of positions, which is not stored."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=1024, vocab_size=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert load(tmp_path).config.n_positions == 1024


@pytest.mark.parametrize("dtype", ["text", 0.5])
def test_a_dtype_that_torch_does_not_have_is_named(base, dtype):
    change_config(base, dtype=dtype)
    with pytest.raises(ModelError):
        read_stored_dtype(ModelSection(model_name_or_path=str(base)), "base")
