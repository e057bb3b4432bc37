"""Other common settings on two processes: activation checkpointing, evaluation, best model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import read_metrics
from tests.distributed.cells import train, write_recipe_for

pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("setting", ["ddp", "zero2", "zero3"])
def test_checkpointing_evaluation_and_the_best_checkpoint_work_together(
    setting, cell, tmp_path, shared_model
):
    recipe = write_recipe_for(
        *(tmp_path, shared_model, "lora", setting, "run"),
        activation_checkpointing=True,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
    )
    outcome = train(2, recipe)
    assert outcome.code == 0, outcome.stderr
    run = tmp_path / "run"
    expected = cell("lora", "one").read("loss")
    assert read_metrics(run, "loss") == pytest.approx(expected, rel=1e-5)
    scores = read_metrics(run, "eval_loss")
    assert list(scores) == [3, 6]
    best = run / "checkpoints" / f"checkpoint-{min(scores, key=scores.__getitem__)}"
    wanted = load_file(best / "adapter_model.safetensors")
    exported = load_file(run / "adapter" / "adapter_model.safetensors")
    assert wanted.keys() == exported.keys()
    assert all(torch.equal(wanted[name], exported[name]) for name in wanted)


@pytest.mark.parametrize(
    "adapter",
    [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"use_dora": True, "bias": "lora_only"}],
    ids=["modules_to_save", "dora"],
)
@pytest.mark.parametrize("setting", ["zero2", "zero3"])
def test_adapter_weights_other_than_a_and_b_are_the_same_on_two_processes(
    setting, adapter, tmp_path, shared_model
):
    runs = [tmp_path / "one" / "run", tmp_path / setting / "run"]
    for processes, run in enumerate(runs, start=1):
        recipe = write_recipe_for(run.parent, shared_model, "lora", run.parent.name, "run")
        document = json.loads(recipe.read_text())
        document["adapter"] |= adapter
        recipe.write_text(json.dumps(document))
        outcome = train(processes, recipe)
        assert outcome.code == 0, outcome.stderr
    losses = [read_metrics(run, "loss") for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    one, two = (load_file(run / "adapter" / "adapter_model.safetensors") for run in runs)
    assert one.keys() == two.keys()
    difference = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert difference <= 1e-4  # with a learning rate of 1e-2 a weight changes by up to 6e-2


def test_a_nan_loss_stops_both_processes_before_the_step(tmp_path, shared_model):
    """With this learning rate the weights overflow soon. No NaN weights may be saved."""
    recipe = write_recipe_for(
        *(tmp_path, shared_model, "lora", "ddp", "run"), learning_rate=1e30, save_steps=1
    )
    outcome = train(2, recipe)
    assert outcome.code != 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 6
    assert "at optimizer step" in status["reason"]
    for folder in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
