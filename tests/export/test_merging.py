"""The merged model answers like base model + adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_tiny_llama


def make_adapter(base: Path, folder: Path, *, scale: float = 0.5, **config: object) -> Path:
    """Save an adapter with random B matrices."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **config)
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
    model.save_pretrained(folder)
    return folder


def greedy(model: torch.nn.Module, ids: torch.Tensor) -> list[int]:
    output = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=3)
    return output[0].tolist()


@pytest.mark.parametrize(
    ("dtype", "largest"), [("float32", 1e-4), ("bfloat16", 0.3), ("float16", 0.05)]
)
def test_the_merged_model_answers_like_base_model_plus_adapter(
    command, tiny_model, tmp_path, dtype, largest
):
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    outcome = command("merge", adapter, tmp_path / "merged", "--dtype", dtype, "--json")
    assert outcome.code == 0
    report = outcome.json
    assert report["onto"] == "original"
    assert report["adapter_tensors_used"] == report["adapter_tensors_total"] == 28
    assert report["tensors_merged"] == 14
    assert report["correctness"]["passed"]
    assert report["correctness"]["max_abs_logit_difference"] < largest
    assert report["correctness"]["tensors"]["differing"] == 0
    assert report["correctness"]["tensors"]["compared"] == 21
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert str(merged.dtype) == f"torch.{dtype}"
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(40, 60)[None]
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, adapter)
    difference = (merged.float()(ids).logits - adapted(ids).logits).abs().max()
    assert difference < largest
    assert (adapted(ids).logits - plain).abs().max() > 10 * difference


def test_the_merged_model_of_a_run_gives_the_same_greedy_text(
    command, write_recipe, tmp_path, tiny_model
):
    assert command("train", write_recipe(train={"max_steps": 20, "learning_rate": 1e-2})).code == 0
    assert command("merge", tmp_path / "run", tmp_path / "merged").code == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is Oslo?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    assert merged.dtype == torch.float32  # the dtype of training
    assert greedy(merged, ids) == greedy(adapted, ids)


def test_the_report_has_the_loss_on_the_validation_rows_of_the_run(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    outcome = command("merge", tmp_path / "run", tmp_path / "merged", "--json")
    shift = outcome.json["shift"]
    assert shift["held_out_rows"] == len(
        json.loads((tmp_path / "run" / "validation_sample.json").read_text())["rows"]
    )
    assert shift["loss"] == pytest.approx(shift["loss_as_trained"], abs=1e-4)
    assert outcome.json["correctness"]["greedy_equal"] == 4
    assert not list((tmp_path / "run" / "adapter").glob("*sample*"))


def test_the_merged_folder_has_every_file_that_a_server_needs(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    assert command("merge", tmp_path / "run", tmp_path / "merged").code == 0
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "merge_report.json",
        "README.md",
    } <= names
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    stops = generation["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (
        stops if isinstance(stops, list) else [stops]
    )
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".merged")]


def test_base_gives_the_new_path_of_a_moved_base_model(command, tmp_path):
    base = make_tiny_llama(tmp_path / "old")
    adapter = make_adapter(base, tmp_path / "adapter")
    base.rename(tmp_path / "new")
    assert command("merge", adapter, tmp_path / "merged").code == 4
    assert command("merge", adapter, tmp_path / "merged", "--base", tmp_path / "new").code == 0


def test_a_dry_run_writes_nothing(command, tiny_model, tmp_path):
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    outcome = command("merge", adapter, tmp_path / "merged", "--dry-run", "--json")
    assert outcome.code == 0
    assert outcome.json["adapter_tensors_total"] == 28
    assert len(outcome.json["merged"]) == outcome.json["tensors_merged"] == 14
    assert "model.layers.0.self_attn.q_proj.weight" in outcome.json["merged"]
    assert not (tmp_path / "merged").exists()


def test_an_output_that_exists_is_not_changed(command, tiny_model, tmp_path):
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    outcome = command("merge", adapter, tmp_path / "merged")
    assert outcome.code == 7
    assert "the output exists already" in outcome.stderr
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_a_folder_without_an_adapter_is_an_export_error(command, tmp_path):
    outcome = command("merge", tmp_path, tmp_path / "merged")
    assert outcome.code == 7
    assert len(outcome.stderr.strip().splitlines()) == 3
