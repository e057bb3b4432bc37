"""A run that was begun on two processes goes on on one, and the other way round."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lora_sft.train.checkpoints.sealing import seal
from tests.commands import read_metrics
from tests.distributed.cells import STEPS, train, write_recipe_for

pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
pytestmark = pytest.mark.slow
HALF = STEPS // 2
# Rounding under NF4 and bfloat16 is another with another cut: see test_every_stage.
RELATIVE = {"lora": {"loss": 1e-5, "grad_norm": 1e-5}, "qlora": {"loss": 1e-4, "grad_norm": 5e-3}}


def begin(cell, spread, tmp_path, shared_model, name, base="lora"):
    """The first half of a cell's run, in a folder of its own: its first checkpoint, moved."""
    source = cell(base, spread)
    recipe = write_recipe_for(tmp_path, shared_model, base, spread, name)
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
    for key in ("loss", "grad_norm", "learning_rate"):
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
def test_a_run_goes_on_with_another_number_of_processes(
    base, before, processes, cell, tmp_path, shared_model
):
    recipe, run = begin(cell, before, tmp_path, shared_model, "run", base)
    outcome = train(processes, recipe)
    assert outcome.code == 0, outcome.stderr
    assert f"checkpoint-{HALF}" in outcome.stderr
    assert json.loads((run / "manifest.json").read_text())["world_size"] == processes
    check_second_half(run, cell(base, "one"), base)


def test_a_lost_optimizer_would_be_seen(cell, tmp_path, shared_model):
    """The comparison above is worth something: without its moments the run is another one."""
    recipe, run = begin(cell, "ddp", tmp_path, shared_model, "reset")
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


def test_a_shard_that_was_changed_is_never_loaded(cell, tmp_path, shared_model):
    """DeepSpeed's states are pickles; one that is not the one that was saved could run anything."""
    recipe, run = begin(cell, "zero2", tmp_path, shared_model, "changed")
    (shard, *_) = sorted(run.rglob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    outcome = train(1, recipe)
    assert outcome.code == 2
    assert "is not the file that was saved" in outcome.stderr
    assert "no complete checkpoint to go on from" in outcome.stderr
