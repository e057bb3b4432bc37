"""Every target of an adapter matches a module, and the model uses every saved tensor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_sft.errors import ModelError
from lora_sft.model.adapter import add_adapter, count_adapted_modules, load_adapter
from lora_sft.model.census import take_census
from tests.tiny import make_tiny_llama


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def recipe(**lora: object) -> SimpleNamespace:
    return SimpleNamespace(
        adapter=SimpleNamespace(lora=lora, init_from=None),
        model=SimpleNamespace(model_name_or_path="some/model"),
        where=lambda field: f"my.yaml:14  {field}",
    )


def test_the_error_for_a_misspelt_target_names_the_most_similar_module(tiny_model):
    with pytest.raises(ModelError) as caught:
        add_adapter(load(tiny_model), recipe(target_modules=["q_proj", "v_porj"]))
    assert str(caught.value).splitlines() == [
        'error: "v_porj" matches no module of some/model (1 of 2 targets matched)',
        "where: my.yaml:14  adapter.target_modules.1",
        'fix:   did you mean "v_proj"?',
    ]


def test_the_error_for_a_pattern_without_a_match_lists_the_linear_layers(tiny_model):
    with pytest.raises(ModelError) as caught:
        add_adapter(load(tiny_model), recipe(target_modules=r".*\.attention\.query"))
    assert "linear layers of this model: down_proj, gate_proj, k_proj" in caught.value.fix


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["q_proj", "v_proj"], {"q_proj": 2, "v_proj": 2}),
        (r".*layers\.1\..*q_proj", {"q_proj": 1}),
        (
            "all-linear",
            dict.fromkeys(
                ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"), 2
            ),
        ),
    ],
)
def test_only_the_target_modules_get_an_adapter(tiny_model, targets, adapted):
    model = add_adapter(load(tiny_model), recipe(r=4, target_modules=targets))
    assert count_adapted_modules(model) == adapted


def test_an_adapter_with_tensors_for_missing_layers_is_refused(tiny_model, tmp_path):
    adapted = get_peft_model(load(tiny_model), LoraConfig(r=4, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    other = make_tiny_llama(tmp_path / "other", layers=1)
    with pytest.raises(ModelError, match="does not fit the base"):
        load_adapter(load(other), tmp_path / "adapter")


def test_an_adapter_for_another_hidden_size_is_refused(tiny_model, tmp_path):
    adapted = get_peft_model(load(tiny_model), LoraConfig(r=4, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    other = make_tiny_llama(tmp_path / "other", hidden=128)
    with pytest.raises(ModelError, match="does not fit the base"):
        load_adapter(load(other), tmp_path / "adapter")


def test_a_folder_without_an_adapter_is_refused(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="this folder has no adapter"):
        load_adapter(load(tiny_model), tmp_path)


def test_the_census_counts_every_parameter_once(tmp_path):
    tied = load(make_tiny_llama(tmp_path / "tied", tied=True))
    total = sum(parameter.numel() for parameter in tied.parameters())
    census = take_census(add_adapter(tied, recipe(r=4, target_modules=["q_proj"])))
    trained = 2 * 4 * (64 + 64)
    assert census.trained_parameters == trained
    assert census.total_parameters == total + trained
    assert {row.kind: row.bytes for row in census.rows} == {
        "frozen": 4 * total,
        "trained": 4 * trained,
    }


def test_a_model_without_trainable_parameters_is_refused(tiny_model):
    model = load(tiny_model).requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter of the model would be trained"):
        take_census(model)
