"""Whole runs on a GPU, through the command line: train, stop, resume, evaluate and merge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from lora_sft.recipe import read_recipe
from lora_sft.train.trl.sft_arguments import choose_optimizer
from tests.commands import read_metrics
from tests.gpu.kinds import both_kinds
from tests.tiny import make_tiny_llama

pytestmark = pytest.mark.gpu

FAST = {"learning_rate": 2e-2, "max_steps": 12, "save_steps": 100}
STOPPED_STEPS = 80


@both_kinds
def test_lora_trains_and_its_adapter_is_evaluated(sections, command, train, write_recipe, tmp_path):
    losses = train(write_recipe(**sections, train=FAST), tmp_path / "run")
    assert list(losses) == list(range(1, 13))
    assert losses[12] < 0.98 * losses[1]
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    evaluation = command("evaluate", tmp_path / "run", "--rows", 4, "--json")
    assert evaluation.code == 0, evaluation.stderr
    assert evaluation.json


@both_kinds
def test_every_weight_is_on_the_device(sections, train, write_recipe, tmp_path, device):
    train(write_recipe(**sections, train=FAST), tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "manifest.json").read_text())["census"]["rows"]
    assert {row["device"].split(":")[0] for row in rows} == {device}
    assert ("quantised" in {row["kind"] for row in rows}) == ("quantization" in sections)


@both_kinds
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_run(
    sections, train, write_recipe, tmp_path, repeats_to
):
    """At rank 64 the adapter's matrices are large enough for 8-bit optimizer states."""
    schedule = {"max_steps": 6, "save_steps": 3, "lr_scheduler_type": "constant", "warmup_steps": 0}
    given = {**sections, "adapter": {"r": 64}}
    straight = write_recipe(
        "straight.yaml", **given, train=schedule, output_dir=str(tmp_path / "straight")
    )
    expected = train(straight, tmp_path / "straight")
    recipe = write_recipe(**given, train={**schedule, "max_steps": 3})
    assert list(train(recipe, tmp_path / "run")) == [1, 2, 3]
    resumed = train(recipe, tmp_path / "run", "train.max_steps=6")
    assert resumed == pytest.approx(expected, rel=repeats_to, abs=0)


@both_kinds
def test_the_merge_of_a_gpu_run_passes_its_verification(
    sections, command, train, write_recipe, tmp_path
):
    train(write_recipe(**sections, train=FAST), tmp_path / "run")
    merged = command("merge", tmp_path / "run", tmp_path / "merged", "--json")
    assert merged.code == 0, merged.stderr
    expected = "dequantized" if "quantization" in sections else "original"
    assert merged.json["onto"] == expected
    assert merged.json["correctness"]["prompts"] > 0


def test_the_default_optimizer_of_a_four_bit_base_is_paged_and_8_bit(
    device, train, write_recipe, tmp_path
):
    """bitsandbytes pages a state with 100,000 numbers or more: so rank 128 and width 1,024."""
    wide = make_tiny_llama(tmp_path / "wide", hidden=1024, layers=1, heads=16, key_value_heads=8)
    chosen = {} if device == "cuda" else {"optim": "paged_adamw_8bit"}  # the default on CUDA
    recipe = write_recipe(
        model={"dtype": "bfloat16", "model_name_or_path": str(wide)},
        quantization="nf4",
        adapter={"r": 128, "target_modules": ["q_proj", "down_proj"]},
        train={"max_steps": 2, "global_batch_size": 2, "warmup_steps": 0, **chosen},
    )
    if device == "cuda":
        assert choose_optimizer(read_recipe(recipe)) == "paged_adamw_8bit"
    train(recipe, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    assert len(saved) == 4
    assert {find_first_moment(each).dtype for each in saved.values()} == {torch.uint8}


def find_first_moment(saved):
    """Return Adam's first moment. bitsandbytes 0.50 saves it inside a nested dictionary."""
    return next((each["state1"] for each in saved.values() if isinstance(each, dict)), None)


def test_a_terminated_run_saves_its_state_and_can_be_resumed(command, write_recipe, tmp_path):
    schedule = {"max_steps": STOPPED_STEPS, "save_steps": 1000}
    recipe = write_recipe(model={"dtype": "bfloat16"}, train=schedule)
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_sft", "train", str(recipe)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    stopped_at = json.loads((tmp_path / "run" / "status.json").read_text())["step"]
    assert 1 <= stopped_at < STOPPED_STEPS
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert f"checkpoint-{stopped_at}" in again.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == list(range(1, STOPPED_STEPS + 1))
