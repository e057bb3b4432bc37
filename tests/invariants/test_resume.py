"""A run that is killed and continued leaves the files of a run that was never interrupted."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import pytest
from transformers.trainer_callback import CallbackHandler

from tests.commands import read_metrics, read_timeless_metrics
from tests.conftest import make_rows, write_rows
from tests.killing import run_until_killed

QLORA = {"model": {"dtype": "bfloat16"}, "quantization": "nf4"}
# A falling loss counts as worse here, so early stopping ends the run.
STOPPED_EARLY = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
}
CELLS = tuple(
    itertools.product(
        ("lora", "qlora"), ("unpacked", "packed"), (0.0, 0.1), ("mid-epoch", "epoch edge"), (1, 2)
    )
)
QUICK_CELLS = (
    ("lora", "packed", 0.1, "mid-epoch", 2),
    ("qlora", "unpacked", 0.1, "epoch edge", 1),
)


def make_cell(cell) -> object:
    return pytest.param(*cell, marks=[] if cell in QUICK_CELLS else pytest.mark.slow)


@pytest.fixture
def write(write_recipe, tmp_path):
    """Return a function that writes a recipe with dropout, 24 rows, and 4 rows for evaluation."""

    def write(**sections):
        write_rows(tmp_path / "held_out.jsonl", make_rows(52)[48:])
        recipe = write_recipe(
            **{
                **sections,
                "adapter": {"lora_dropout": 0.1, **sections.get("adapter", {})},
                "data": {
                    "validation": {"datasets": [{"path": "held_out.jsonl"}]},
                    **sections.get("data", {}),
                },
                "train": {
                    "lr_scheduler_type": "constant",
                    "warmup_steps": 0,
                    "global_batch_size": 4,
                    "logging_steps": 5,
                    "save_steps": 1,
                    **sections.get("train", {}),
                },
            }
        )
        write_rows(tmp_path / "train.jsonl", make_rows(24))
        return recipe

    return write


def read_outcome(run: Path) -> tuple[list[str], bytes]:
    return read_timeless_metrics(run), (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "packing", "dropout", "place", "accumulation"), list(map(make_cell, CELLS))
)
def test_a_killed_run_continues_as_if_it_had_not_been(
    command, write, tmp_path, method, packing, dropout, place, accumulation
):
    assert len(CELLS) == 32
    recipe = write(
        **(QLORA if method == "qlora" else {}),
        adapter={"lora_dropout": dropout},
        data={"packing": packing == "packed"},
        train={**STOPPED_EARLY, "global_batch_size": 2 * accumulation, "max_steps": 40},
    )
    count = f"output_dir={tmp_path / 'count'}"
    assert command("train", recipe, count, "train.max_steps=1").code == 0
    plan = json.loads((tmp_path / "count" / "manifest.json").read_text())["plan"]
    epoch_steps = -(-plan["packing"]["rows"] // plan["global_batch_size"])
    killed_step = epoch_steps + (1 if place == "mid-epoch" else 0)
    patience = f"train.early_stopping_patience={epoch_steps + 3}"
    straight, broken = (f"output_dir={tmp_path / name}" for name in ("straight", "broken"))
    assert command("train", recipe, straight, patience).code == 0
    run_until_killed("on_step_begin", killed_step, "train", recipe, broken, patience)
    again = command("train", recipe, broken, patience)
    assert f"checkpoint-{killed_step}" in again.stderr
    assert read_outcome(tmp_path / "broken") == read_outcome(tmp_path / "straight")
    assert killed_step < max(read_metrics(tmp_path / "straight", "train_loss")) < 40


@pytest.mark.parametrize(
    ("train", "event", "step"),
    [
        pytest.param({"max_steps": 4}, "on_save", 4, id="before the last record"),
        pytest.param(
            {"max_steps": 4}, "on_train_end", 4, id="after the last record", marks=pytest.mark.slow
        ),
        pytest.param(
            {**STOPPED_EARLY, "early_stopping_patience": 2, "max_steps": 8},
            "on_save",
            3,
            id="after early stopping",
        ),
        pytest.param(
            {
                "eval_on_start": True,
                "eval_strategy": "epoch",
                "logging_strategy": "epoch",
                "save_steps": 2,
                "max_steps": 9,
            },
            "on_evaluate",
            6,
            id="in the evaluation of an epoch",
        ),
    ],
)
def test_a_run_killed_at_an_end_continues_as_if_it_had_not_been(
    command, write, tmp_path, train, event, step
):
    recipe = write(train=train)
    straight, broken = (f"output_dir={tmp_path / name}" for name in ("straight", "broken"))
    assert command("train", recipe, straight).code == 0
    run_until_killed(event, step, "train", recipe, broken)
    again = command("train", recipe, broken)
    assert again.code == 0, again.stderr
    assert read_outcome(tmp_path / "broken") == read_outcome(tmp_path / "straight")


def test_a_stop_in_an_epoch_adds_no_record_and_no_evaluation_changes_the_training(
    command, write, tmp_path, monkeypatch
):
    """The evaluation of the step at which the signal stops the run is skipped."""
    evaluations = {"eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "epoch"}
    recipe = write(train={**evaluations, "save_steps": 100, "max_steps": 9})
    straight, stopped = (f"output_dir={tmp_path / name}" for name in ("straight", "stopped"))
    assert command("train", recipe, straight).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(CallbackHandler, "on_step_begin", make_signal_at(3))
        assert command("train", recipe, stopped).code == 75
    assert command("train", recipe, stopped).code == 0
    lines, adapter = read_outcome(tmp_path / "straight")
    skipped = [line for line in lines if '"step": 4, "eval_loss"' in line]
    assert len(skipped) == 1
    lines.remove(skipped[0])
    assert read_outcome(tmp_path / "stopped") == (lines, adapter)


def make_signal_at(step: int):
    call = CallbackHandler.on_step_begin

    def call_and_signal(self, args, state, control):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, args, state, control)

    return call_and_signal


@pytest.mark.parametrize("damage", ["deleted", "not text", "other numbers"])
def test_a_damaged_metrics_file_is_written_again_from_the_checkpoint(
    command, write, tmp_path, damage
):
    recipe = write(train={"logging_steps": 1, "max_steps": 4})
    straight, broken = (f"output_dir={tmp_path / name}" for name in ("straight", "broken"))
    assert command("train", recipe, straight).code == 0
    run_until_killed("on_step_begin", 3, "train", recipe, broken)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    if damage == "deleted":
        metrics.unlink()
    elif damage == "not text":
        metrics.write_bytes(b"\xff" + metrics.read_bytes())
    else:
        metrics.write_text(metrics.read_text().replace('"loss": ', '"loss": 1'))
    again = command("train", recipe, broken)
    assert again.code == 0, again.stderr
    assert read_outcome(tmp_path / "broken") == read_outcome(tmp_path / "straight")
