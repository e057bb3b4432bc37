"""New intervals of a continued run take effect."""

from __future__ import annotations

from tests.commands import read_metrics


def test_intervals_that_change_before_a_run_continues_take_effect(command, write_recipe, tmp_path):
    """They were 2 steps each. Then they are 3 steps to save, 4 to log and 5 to evaluate."""
    steps = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2, "save_steps": 2}
    recipe, run = write_recipe(train={**steps, "max_steps": 2}), tmp_path / "run"
    assert command("train", recipe).code == 0
    changed = ("train.save_steps=3", "train.logging_steps=4", "train.eval_steps=5")
    outcome = command("train", recipe, "train.max_steps=11", *changed)
    assert outcome.code == 0, outcome.stderr
    assert "do not match" not in outcome.stderr
    saved = [int(path.name.partition("-")[2]) for path in (run / "checkpoints").iterdir()]
    assert sorted(saved) == [2, 3, 6, 9, 11]
    assert list(read_metrics(run, "loss")) == [2, 4, 8]
    assert list(read_metrics(run, "eval_loss")) == [2, 5, 10, 11]


def test_a_fraction_or_another_strategy_may_replace_an_interval(command, write_recipe, tmp_path):
    recipe, run = write_recipe(train={"max_steps": 2, "save_steps": 2}), tmp_path / "run"
    assert command("train", recipe).code == 0
    changed = ("train.save_steps=0.5", "train.logging_strategy=epoch", "train.eval_strategy=epoch")
    outcome = command("train", recipe, "train.max_steps=8", *changed)
    assert outcome.code == 0, outcome.stderr
    saved = [int(path.name.partition("-")[2]) for path in (run / "checkpoints").iterdir()]
    assert sorted(saved) == [2, 4, 8]
    assert list(read_metrics(run, "loss")) == [1, 2, 5, 8]
    assert list(read_metrics(run, "eval_loss")) == [5, 8]
