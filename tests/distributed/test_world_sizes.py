"""A run can be resumed with another number of processes: from two to one, and from one to two."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lora_sft.train.checkpoints.sealing import seal
from tests.commands import read_metrics, read_timeless_metrics
from tests.distributed.cells import STEPS, train, write_recipe_for

pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
pytestmark = pytest.mark.slow
HALF = STEPS // 2
# Under NF4 and bfloat16 another division of the batch rounds differently: see test_every_stage.
RELATIVE = {"lora": {"loss": 1e-5, "grad_norm": 1e-5}, "qlora": {"loss": 1e-4, "grad_norm": 5e-3}}


def copy_first_half(cell, setting, tmp_path, shared_model, name, base="lora"):
    """Copy a cell's run with only its first checkpoint; return the recipe and the new run."""
    source = cell(base, setting)
    recipe = write_recipe_for(tmp_path, shared_model, base, setting, name)
    run = tmp_path / name
    shutil.copytree(source.run, run)
    shutil.rmtree(run / "checkpoints" / f"checkpoint-{STEPS}")
    shutil.rmtree(run / "adapter")
    (run / "status.json").unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    text = json.dumps(manifest).replace(
        str(source.run.parent / "train.jsonl"), str(tmp_path / "train.jsonl")
    )
    (run / "manifest.json").write_text(text)
    return recipe, run


def check_second_half(run, straight, base="lora"):
    for key in ("loss", "grad_norm", "learning_rate", "num_tokens"):
        expected, found = straight.read(key), read_metrics(run, key)
        assert list(found) == list(expected)
        relative = RELATIVE[base].get(key, 1e-12)
        for step in range(HALF + 1, STEPS + 1):
            assert found[step] == pytest.approx(expected[step], rel=relative), (key, step)


@pytest.mark.parametrize(
    ("base", "before", "processes"),
    [
        ("lora", "ddp", 1),
        ("lora", "one", 2),
        ("lora", "zero1", 1),
        ("lora", "zero2", 1),
        ("lora", "zero2_alone", 2),
        ("lora", "zero3", 1),
        ("lora", "zero3_alone", 2),
        ("qlora", "ddp", 1),
        ("qlora", "one", 2),
        ("qlora", "zero3", 1),
        ("qlora", "zero3_alone", 2),
    ],
)
def test_a_run_continues_with_another_number_of_processes(
    base, before, processes, cell, tmp_path, shared_model
):
    recipe, run = copy_first_half(cell, before, tmp_path, shared_model, "run", base)
    outcome = train(processes, recipe)
    assert outcome.code == 0, outcome.stderr
    assert f"checkpoint-{HALF}" in outcome.stderr
    assert json.loads((run / "manifest.json").read_text())["world_size"] == processes
    check_second_half(run, cell(base, "one"), base)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_sums_of_the_log_continue_with_any_number_of_processes(
    processes, tmp_path, shared_model
):
    """Of the steps 1 to 4, whose mean loss is logged, three are before the interruption."""
    logs = {"logging_steps": 4}
    recipe = write_recipe_for(tmp_path, shared_model, "lora", "ddp", "run", **logs)
    assert train(2, recipe).code == 0
    run, straight = tmp_path / "run", tmp_path / "straight"
    shutil.copytree(run, straight)
    shutil.rmtree(run / "checkpoints" / f"checkpoint-{STEPS}")
    (run / "status.json").unlink()
    assert train(processes, recipe).code == 0
    if processes == 2:
        assert read_timeless_metrics(run) == read_timeless_metrics(straight)
    for key in ("loss", "train_loss"):
        assert read_metrics(run, key) == pytest.approx(read_metrics(straight, key), rel=1e-5)
    # Step 6 ends an epoch. There, two processes also count the tokens of filler rows.
    tokens, expected = read_metrics(run, "num_tokens"), read_metrics(straight, "num_tokens")
    assert tokens[4] == expected[4]
    assert tokens[STEPS] <= expected[STEPS]


def test_the_comparison_notices_lost_optimizer_states(cell, tmp_path, shared_model):
    """The test above is strict enough: without the moments of AdamW it fails."""
    recipe, run = copy_first_half(cell, "ddp", tmp_path, shared_model, "reset")
    checkpoint = run / "checkpoints" / f"checkpoint-{HALF}"
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for moments in state["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name].zero_()
    torch.save(state, checkpoint / "optimizer.pt")
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint, world_size=2)
    assert train(1, recipe).code == 0
    with pytest.raises(AssertionError):
        check_second_half(run, cell("lora", "one"))


def test_a_changed_shard_is_never_loaded(cell, tmp_path, shared_model):
    """DeepSpeed's states are pickles: a changed file could run any code."""
    recipe, run = copy_first_half(cell, "zero2", tmp_path, shared_model, "changed")
    (shard, *_) = sorted(run.rglob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    outcome = train(1, recipe)
    assert outcome.code == 2
    assert "has changed since it was saved" in outcome.stderr
    assert "no complete checkpoint to continue from" in outcome.stderr
