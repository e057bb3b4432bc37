"""The recipe chooses the attention of the base model; the base model's config does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.models.llama import modeling_llama

from lora_sft.errors import ModelError
from lora_sft.model.attention import check_attention
from lora_sft.model.base_model import load_base_model, load_in_float32
from lora_sft.recipe import ModelSection

KERNEL = "somebody/kernel"


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


@pytest.fixture
def eager_calls(monkeypatch) -> list[object]:
    """Return a list that gets an entry for each call of eager attention."""
    calls, plain = [], modeling_llama.eager_attention_forward

    def count(*arguments, **options):
        calls.append(None)
        return plain(*arguments, **options)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", count)
    return calls


def edit_config(base: Path, **fields: object) -> None:
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def load(base: Path, attention: str | None):
    return load_base_model(
        ModelSection(model_name_or_path=str(base), attn_implementation=attention, dtype="float32")
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation": "eager"},
        {"attn_implementation": "eager"},
        {"_attn_implementation": KERNEL},
        {"_attn_implementation": {"": "eager"}},
        {"_attn_implementation": ["eager"]},
        {"_experts_implementation": KERNEL},
        {"per_layer_config": {"0": {"_attn_implementation": "eager"}}},
        {"per_layer_config": {"0": {"_attn_implementation": KERNEL}, "1": {}}},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("attention", ["sdpa", None])
def test_the_recipes_attention_computes_whatever_the_config_asks_for(
    base, eager_calls, fields, attention
):
    edit_config(base, **fields)
    model = load(base, attention)
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert model.config._attn_implementation == "sdpa"
    assert not eager_calls


def test_the_recipe_can_choose_eager_attention(base, eager_calls):
    edit_config(base, _attn_implementation=KERNEL)
    load(base, "eager")(input_ids=torch.tensor([[1, 2, 3]]))
    assert eager_calls


def test_the_reference_model_of_a_verification_ignores_the_config_too(base):
    edit_config(base, _attn_implementation=KERNEL)
    assert load_in_float32(base).config._attn_implementation == "sdpa"


def test_a_model_that_computes_another_attention_than_the_recipe_says_is_refused(base):
    model = load(base, "eager")
    check_attention(model, None, "model")
    with pytest.raises(ModelError) as caught:
        check_attention(model, "sdpa", "model (base)")
    assert str(caught.value).splitlines() == [
        "error: the model computes attention with eager, but the recipe says sdpa",
        "where: model (base)",
        "fix:   write model.attn_implementation: null to let the model choose",
    ]


def test_a_run_says_what_it_ignores_and_no_export_asks_for_it_again(
    command, write_recipe, base, tmp_path
):
    edit_config(base, _attn_implementation=KERNEL)
    recipe = write_recipe(
        model={"model_name_or_path": str(base), "attn_implementation": "sdpa"},
        data={"validation": None},
        train={"max_steps": 1, "warmup_steps": 0},
    )
    outcome = command("train", recipe)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count(f"config.json asks for '{KERNEL}', which is not used") == 1
    merged = command("merge", tmp_path / "run", tmp_path / "merged", "--verify", "none")
    assert merged.code == 0, merged.stderr
    for folder in ("run/adapter", "merged"):
        for path in (tmp_path / folder).glob("*.json"):
            assert KERNEL not in path.read_text(), path
