"""The probe finds every effect of one packed document on another, and reports no other effect."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from lora_sft.model.isolation import Isolation, measure_isolation

DOCUMENTS = (list(range(3, 40)), list(range(50, 20, -1)))


def make_model(config, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, **settings)


def make_batch(documents):
    ids = [token for document in documents for token in document]
    positions = [place for document in documents for place in range(len(document))]
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}


def make_llama(attention: str = "sdpa", **fields):
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **fields,
    )
    return make_model(config, attn_implementation=attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_that_respects_document_borders_has_no_leak(attention):
    found = measure_isolation(make_llama(attention), make_batch, DOCUMENTS)
    assert found.leak == 0.0
    assert found.loss_change < 1e-5
    assert found.fault == ""


def test_dropout_is_not_reported_as_a_leak():
    found = measure_isolation(make_llama("eager", attention_dropout=0.5), make_batch, DOCUMENTS)
    assert found.leak == 0.0


def test_rounding_in_bfloat16_is_not_reported_as_a_fault():
    model = make_llama().to(torch.bfloat16)
    assert measure_isolation(model, make_batch, DOCUMENTS).fault == ""
    assert measure_isolation(make_llama(), make_batch, DOCUMENTS, torch.bfloat16).fault == ""


def test_the_probe_restores_the_model_and_the_random_state():
    model = make_llama()
    model.eval()
    model.model.layers[0].train()
    before = torch.random.get_rng_state()
    measure_isolation(model, make_batch, DOCUMENTS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    assert model.model.layers[0].training
    assert not model.model.layers[1].training


def test_attention_that_ignores_document_borders_is_found(monkeypatch):
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(masks, "sdpa", lambda *arguments, **settings: None)
    found = measure_isolation(make_llama("sdpa"), make_batch, DOCUMENTS)
    assert found.leak > 0.05
    assert "packed documents see each other" in found.fault


def test_positions_that_do_not_restart_in_each_document_are_found():
    """The documents cannot see each other, but the second one gets wrong positions."""
    config = GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    model = make_model(config)
    assert measure_isolation(model, make_batch, DOCUMENTS).fault == ""

    def forward_without_restarts(**inputs):
        if "position_ids" not in inputs:
            return forward(**inputs)
        positions = inputs.pop("position_ids")
        places = torch.arange(positions.numel())[None]
        starts = (positions == 0).cumsum(-1)
        mask = (starts[..., :, None] == starts[..., None, :]).tril()[:, None]
        return forward(**inputs, position_ids=places, attention_mask=mask)

    forward = model.forward
    model.forward = forward_without_restarts
    found = measure_isolation(model, make_batch, DOCUMENTS)
    assert found.leak == 0.0
    assert "packing changes the loss of a document" in found.fault


@pytest.mark.parametrize(
    "config",
    [
        Lfm2Config(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
        Mamba2Config(
            vocab_size=128,
            hidden_size=64,
            num_hidden_layers=2,
            num_heads=4,
            head_dim=32,
            state_size=16,
            n_groups=1,
            chunk_size=16,
        ),
        MambaConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2, state_size=16),
    ],
    ids=["short convolutions", "state space (mamba2)", "state space (mamba)"],
)
def test_other_layers_that_carry_state_over_a_border_are_found(config):
    found = measure_isolation(make_model(config), make_batch, DOCUMENTS)
    assert found.fault != ""


def test_experts_that_share_batches_are_not_reported_as_a_leak():
    config = MixtralConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    for dtype in (torch.float32, torch.bfloat16):
        found = measure_isolation(make_model(config).to(dtype), make_batch, DOCUMENTS)
        assert found.fault == "", found


def test_a_model_that_does_not_accept_positions_is_refused():
    model = make_llama()
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    fault = measure_isolation(model, make_batch, DOCUMENTS).fault
    assert "does not accept position ids" in fault


def test_nan_is_a_fault():
    assert Isolation(leak=float("nan")).fault
    assert Isolation(loss_change=float("nan")).fault
