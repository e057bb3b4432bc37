"""Whole runs on real data. Each takes minutes, so only `make test-all` runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tests.commands import read_metrics, run_torchrun

pytestmark = pytest.mark.slow
E2E_RECIPE = Path(__file__).resolve().parents[2] / "docs" / "e2e_lora.yaml"


def test_lora_on_e2e_reaches_the_reference_loss_and_the_merged_model_answers_the_same(
    command, shared_data, tmp_path
):
    base_folder = shared_data / "models" / "stories260K-hf"
    run = tmp_path / "run"
    trained = command(
        "train",
        E2E_RECIPE,
        f"model={base_folder}",
        f"data.datasets.0.path={shared_data / 'e2e_nlg' / 'devset.csv'}",
        f"data.test.datasets.0.path={shared_data / 'e2e_nlg' / 'testset_w_refs.csv'}",
        f"output_dir={run}",
    )
    assert trained.code == 0, trained.stderr
    scores = command("evaluate", run, "--split", "test", "--json").json
    assert scores["rows"] == 4693
    assert scores["base"]["loss"] > 4
    assert scores["adapter"]["loss"] <= 1.60
    assert command("merge", run, tmp_path / "merged").code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer(
        "name[Blue Spice], eatType[pub], area[riverside]", return_tensors="pt"
    ).input_ids
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run / "adapter")
    texts = [
        tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=40, do_sample=False)[0])
        for model in (merged, adapted)
    ]
    assert texts[0] == texts[1]


def test_qlora_on_gsm8k_with_the_real_qwen3_template_lowers_the_loss_on_two_processes(
    command, shared_data, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = (shared_data / "gsm8k" / "train.jsonl").read_text().splitlines()[:400]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    recipe = {
        "model": "base",
        "quantization": "nf4",
        "adapter": {"r": 16, "lora_alpha": 32},
        "data": {
            "datasets": [
                {
                    "path": "train.jsonl",
                    "format": "alpaca",
                    "rename_columns": {"question": "instruction", "answer": "output"},
                }
            ],
            "validation": {"fraction": 0.05},
            "chat_template_kwargs": {"enable_thinking": False},
            "max_length": 384,
        },
        "train": {
            "learning_rate": 2e-2,
            "max_steps": 12,
            "per_device_train_batch_size": 1,
            "global_batch_size": 4,
            "logging_steps": 1,
            "activation_checkpointing": False,
        },
        "evaluate": {"metrics": [], "num_samples": 0},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "gsm8k.yaml").write_text(json.dumps(recipe))
    outcome = run_torchrun(2, "train", tmp_path / "gsm8k.yaml")
    assert outcome.code == 0, outcome.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["world_size"] == 2
    losses = list(read_metrics(tmp_path / "run", "loss").values())
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.1
    scores = command("evaluate", tmp_path / "run", "--json").json
    assert scores["adapter"]["loss"] < scores["base"]["loss"] - 0.1
