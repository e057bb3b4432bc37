"""A pattern of an adapter's config or of a recipe cannot stop a command."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lora_sft.errors import ModelError
from lora_sft.export.weights.adapter_reading import read_adapter
from lora_sft.model import quantization
from lora_sft.model_files import module_patterns
from lora_sft.model_files.module_patterns import find_pattern_fault, is_plain, list_patterns
from tests.serve.models import make_answering_adapter

NAMES = [
    f"model.language_model.layers.{layer}.{part}"
    for layer in range(60)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.gate_proj")
]
NESTED = r"(([a-z_.0-9])+)+#"
PATIENCE_SECONDS = 30

BOMBS = {
    "nested repetition": NESTED,
    "choices that overlap": "(?:" + "(.|.)" * 40 + ")#",
    "many stars": ".*" * 30 + "#",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_pattern_that_would_need_years_is_found_in_seconds(bomb):
    started = time.monotonic()
    fault = find_pattern_fault({"rank_pattern": {"q_proj": 8, bomb: 8}}, NAMES)
    assert fault is not None
    assert fault.field == "rank_pattern"
    assert "needs too much time" in fault.what
    assert bomb[:20] in fault.what
    assert time.monotonic() - started < PATIENCE_SECONDS


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": NESTED},
        {"exclude_modules": NESTED},
        {"modules_to_save": ["lm_head", NESTED]},
        {"layers_pattern": NESTED},
        {"layers_pattern": ["layers", NESTED]},
        {"alpha_pattern": {NESTED: 8}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_every_field_that_peft_matches_is_tried(config):
    *_, last = list_patterns(config)
    assert last.field == next(iter(config))
    assert NESTED in last.expression
    assert not is_plain(last.text)


# The first is the pattern that Unsloth writes for models with images.
USUAL = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?"
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|down_proj)))",
    r".*\.layers\.(1[0-9]|2[0-3])\..*(q|k|v|o)_proj",
    r"^(?!.*visual).*(?:q_proj|gate_proj).*",
    r"(?i).*Q_PROJ",
)


@pytest.mark.parametrize("pattern", USUAL)
def test_a_usual_pattern_is_accepted(pattern):
    assert find_pattern_fault({"target_modules": pattern}, NAMES * 10) is None


def test_names_and_lists_of_names_are_not_tried(monkeypatch):
    monkeypatch.setattr(module_patterns, "_run_trial", lambda document: pytest.fail("tried"))
    names = {"q_proj": 8, r"layers\.1\.mlp\.down_proj": 2, "model.layers.0.mlp.up_proj": 4}
    config = {"rank_pattern": names, "target_modules": ["q_proj", NESTED], "modules_to_save": None}
    assert find_pattern_fault(config, NAMES) is None


@pytest.mark.parametrize("broken", ["(q_proj", "q_proj)*", "[z-a]", "(" * 5000])
def test_a_pattern_that_is_not_a_regular_expression_is_refused(broken):
    fault = find_pattern_fault({"target_modules": broken}, NAMES)
    assert fault is not None
    assert "is not a regular expression" in fault.what


def test_more_patterns_than_a_model_needs_are_refused():
    fault = find_pattern_fault({"rank_pattern": {f"m{index}": 8 for index in range(10_001)}}, NAMES)
    assert fault is not None
    assert "10,001 patterns" in fault.what


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model) -> Path:
    return make_answering_adapter(tiny_model, tmp_path_factory.mktemp("made"))


def set_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "reader",
    [
        ("merge", "{adapter}", "{out}"),
        ("chat", "{adapter}", "--message", "Hi"),
        ("serve", "{adapter}", "--backend", "vllm", "--dry-run"),
    ],
    ids=lambda words: words[0],
)
def test_a_bomb_in_an_adapter_is_refused_by_the_commands_that_read_it(
    command, tmp_path, adapter, reader
):
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    set_config(copy, target_modules=NESTED)
    words = [word.format(adapter=copy, out=tmp_path / "out") for word in reader]
    outcome = command(*words)
    assert outcome.code == 4, outcome.stderr
    what, where, fix = outcome.stderr.strip().splitlines()[-3:]
    assert "needs too much time" in what
    assert where == f"where: {copy / 'adapter_config.json'}  target_modules"
    assert "use another adapter" in fix


def test_training_does_not_continue_an_adapter_with_a_bomb(
    command, write_recipe, tmp_path, adapter
):
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    set_config(copy, alpha_pattern={NESTED: 8})
    outcome = command("train", write_recipe(), f"adapter={{init_from: {copy}}}")
    assert outcome.code == 4, outcome.stderr
    assert "adapter_config.json  alpha_pattern" in outcome.stderr


def test_a_bomb_in_a_recipe_is_a_fault_of_the_recipe(command, write_recipe):
    recipe = write_recipe()
    outcome = command("train", recipe, f"adapter={{r: 4, target_modules: '{NESTED}'}}")
    assert outcome.code == 2, outcome.stderr
    assert "adapter.target_modules" in outcome.stderr


def test_a_merge_tries_the_names_in_the_adapters_own_file(adapter, tmp_path):
    """The same stranger wrote them, so a pattern may be slow only for such a name."""
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    set_config(copy, rank_pattern={"(a+)+#": 8})
    read_adapter(copy)
    weights = copy / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors["base_model.model." + "a" * 60 + ".lora_A.weight"] = tensors.pop(name)
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="needs too much time"):
        read_adapter(copy)


def test_a_module_that_stays_unquantised_is_given_by_name():
    fields = {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", NESTED]}
    with pytest.raises(ModelError, match="is not the name of a module"):
        quantization.make_quantization_config(fields, None, "adapter/lora_sft.json")
