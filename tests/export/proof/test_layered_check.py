"""Running the models layer by layer needs little memory and gives the same comparison."""

from __future__ import annotations

import json

import pytest

from lora_sft.export.proof import answering_models
from tests.export.adapters import MAKERS, make_adapter
from tests.export.weights.test_qlora_merge import NF4


@pytest.mark.parametrize(
    ("base", "lora"),
    [
        ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("tied llama", {"target_modules": "all-linear", "use_rslora": True}),
        ("gpt2", {"target_modules": "all-linear", "lora_bias": True}),
        ("moe", {"target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_layer_by_layer_gives_the_same_numbers_as_whole_models(
    command, tmp_path, monkeypatch, base, lora
):
    folder = MAKERS[base](tmp_path / "base")
    make_adapter(folder, tmp_path / "adapter", lora)
    options = ("--json", "--dtype", "float16")
    whole = command("merge", tmp_path / "adapter", tmp_path / "whole", *options)
    monkeypatch.setattr(answering_models, "WHOLE_MODEL_BYTES", 0)
    loaded = watch_parameters(monkeypatch)
    layered = command("merge", tmp_path / "adapter", tmp_path / "layered", *options)
    assert whole.code == layered.code == 0
    assert loaded == ["meta", "meta"]
    for name in ("mean_kl", "max_abs_logit_difference", "adapter_effect_kl", "prompts"):
        ours, theirs = (each.json["correctness"][name] for each in (layered, whole))
        assert ours == pytest.approx(theirs, rel=0.05, abs=1e-9), name
    assert sorted(path.name for path in (tmp_path / "layered").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def watch_parameters(monkeypatch) -> list[str]:
    """Return a list that gets the devices of the weights of every model that runs by layer."""
    seen, load = [], answering_models.LayeredModels._load

    def watch(self, location):
        model = load(self, location)
        seen.extend({str(parameter.device) for parameter in model.parameters()})
        return model

    monkeypatch.setattr(answering_models.LayeredModels, "_load", watch)
    return seen


def test_the_dequantised_base_model_runs_layer_by_layer(command, tmp_path, monkeypatch):
    base = MAKERS["llama"](tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", {"target_modules": "all-linear"})
    origin = {"model_name_or_path": str(base), "dtype": "bfloat16", "quantization": NF4}
    (tmp_path / "adapter" / "lora_sft.json").write_text(json.dumps(origin))
    monkeypatch.setattr(answering_models, "WHOLE_MODEL_BYTES", 0)
    outcome = command("merge", tmp_path / "adapter", tmp_path / "merged", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["onto"] == "dequantized"
    assert outcome.json["correctness"]["method"] == "logits"
    assert outcome.json["correctness"]["mean_kl"] < 1e-3
    assert outcome.json["shift"]["mean_kl"] < 1e-3
    assert not [path for path in (tmp_path / "merged").iterdir() if path.name.startswith(".")]


def test_a_model_that_does_not_fit_into_memory_is_verified_only_by_its_tensors(
    command, tmp_path, monkeypatch
):
    base = MAKERS["llama"](tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", {"target_modules": ["q_proj"], "use_dora": True})
    monkeypatch.setattr(answering_models, "find_free_memory", lambda: 1000.0)
    outcome = command("merge", tmp_path / "adapter", tmp_path / "merged", "--json")
    assert outcome.code == 0, outcome.stderr
    checked = outcome.json["correctness"]
    assert checked["method"] == "tensors"
    reason = "an adapter with magnitude needs the whole model in memory"
    assert reason in checked["logits_left_out"]
    assert "answers were not compared" in outcome.stderr
    refused = command("merge", tmp_path / "adapter", tmp_path / "other", "--verify", "logits")
    assert refused.code == 5
    assert "write --verify tensors" in refused.stderr
    assert not (tmp_path / "other").exists()
