"""The whole quickstart, as a new user runs it."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM


def test_the_quickstart_learns_a_task_and_leaves_a_verified_model(command, tmp_path):
    folder = tmp_path / "first-try"
    outcome = command("quickstart", folder)
    assert outcome.code == 0, outcome.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["split"] == "test"
    assert result["rows"] == 200
    assert result["base"]["exact_match"] <= 0.02
    assert result["adapter"]["exact_match"] >= 0.8
    assert result["adapter"]["loss"] < 0.1 * result["base"]["loss"]
    assert result["plain_text_loss"] < 2
    assert len(result["samples"]) == 3
    report = json.loads((folder / "merged" / "merge_report.json").read_text())
    assert report["correctness"]["passed"] is True
    assert (folder / "run" / "adapter" / "adapter_model.safetensors").exists()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto")
    assert merged.dtype == torch.float32
    for shown in ("exact_match", "before", "after", "lora-sft chat"):
        assert shown in outcome.stdout
    again = command("quickstart", folder)
    assert again.code == 0
    assert "this run is finished" in again.stderr
    assert "already merged" in again.stderr
