"""The metrics file is valid JSON; after a signal the run saves its state and stops soon."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_sft.processes.stop_signal import StopRequest
from lora_sft.run_directory import RunDirectory
from lora_sft.train.callbacks import MetricsFile, StopOnSignal
from tests.commands import read_metrics


def refuse(name):
    raise AssertionError(f"{name} is not valid JSON")


def test_infinite_and_nan_metrics_are_null(tmp_path):
    run = RunDirectory(tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    logs = {"loss": 2.5, "grad_norm": math.inf, "eval_loss": math.nan}
    MetricsFile(run).on_log(arguments, TrainerState(global_step=3), TrainerControl(), logs=logs)
    record = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert record == {"step": 3, "loss": 2.5, "grad_norm": None, "eval_loss": None}


def make_stop(folder, **settings):
    """Return a callback after SIGTERM at step 4 of 10, and the arguments of its methods."""
    request = StopRequest()
    request.received = signal.SIGTERM
    evaluates = {"eval_strategy": "steps", "eval_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", **{**evaluates, **settings}
    )
    state = TrainerState(global_step=4, max_steps=10, epoch=0.5)
    return StopOnSignal(request), arguments, state, TrainerControl(should_evaluate=True)


@pytest.mark.parametrize(
    ("settings", "is_made"),
    [
        ({}, False),
        ({"load_best_model_at_end": True, "save_steps": 2}, True),
        ({"metric_for_best_model": "loss"}, True),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, True),
    ],
)
def test_a_stop_skips_an_evaluation_that_decides_nothing(settings, is_made, tmp_path):
    stop, arguments, state, control = make_stop(tmp_path, **settings)
    stop.on_step_end(arguments, state, control)
    assert control.should_training_stop
    assert control.should_save
    assert control.should_evaluate == is_made


def test_the_last_step_is_evaluated_even_after_a_signal(tmp_path):
    stop, arguments, state, control = make_stop(tmp_path)
    state.global_step = 10
    stop.on_step_end(arguments, state, control)
    assert control.should_evaluate


@pytest.mark.parametrize(
    ("epoch", "metric", "is_made"), [(0.5, "loss", False), (1.0, "loss", True), (1.0, None, False)]
)
def test_a_stop_inside_an_epoch_evaluates_nothing_and_saves_once(epoch, metric, is_made, tmp_path):
    stop, arguments, state, control = make_stop(tmp_path, metric_for_best_model=metric)
    state.epoch = epoch
    stop.on_step_end(arguments, state, control)
    stop.on_save(arguments, state, control)
    control.should_evaluate = control.should_save = True  # as at the end of an epoch
    stop.on_epoch_end(arguments, state, control)
    assert control.should_evaluate == control.should_save == is_made


def test_a_save_that_an_evaluation_cancelled_is_made_later(tmp_path):
    stop, arguments, state, control = make_stop(tmp_path, metric_for_best_model="loss")
    stop.on_step_end(arguments, state, control)
    control.should_save = False  # with `save_strategy: best`, after a worse evaluation
    stop.on_epoch_end(arguments, state, control)
    assert control.should_save


def test_a_run_that_early_stopping_ends_was_not_stopped_by_a_signal(tmp_path):
    """The signal arrives during the evaluation that ends the run."""
    stop, arguments, state, control = make_stop(tmp_path, metric_for_best_model="loss")
    stop.request.received = None
    stop.on_step_end(arguments, state, control)
    stop.request.received = signal.SIGTERM
    control.should_training_stop = True
    stop.on_evaluate(arguments, state, control)
    assert stop.received is None


@pytest.fixture
def signalled(monkeypatch):
    """A set of (step, is evaluation). SIGTERM arrives when such a record is logged."""
    log, moments = MetricsFile.on_log, set()

    def log_and_signal(self, args, state, control, logs=None, **kwargs):
        log(self, args, state, control, logs=logs, **kwargs)
        if (state.global_step, "eval_loss" in logs) in moments:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "on_log", log_and_signal)
    return moments


def test_a_signal_during_an_evaluation_saves_the_evaluated_step(
    command, write_recipe, tmp_path, signalled
):
    train = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 100, "max_steps": 6}
    recipe, run = write_recipe(train=train), tmp_path / "run"
    for moment, step in (((2, True), 2), ((3, False), 4)):
        signalled.add(moment)
        outcome = command("train", recipe)
        signalled.clear()
        assert outcome.code == 75
        assert json.loads((run / "status.json").read_text())["step"] == step
    assert "the evaluation of step 4 is skipped" in outcome.stderr
    assert command("train", recipe).code == 0
    assert sorted(read_metrics(run, "eval_loss")) == [2, 6]


def test_the_checkpoint_of_a_stop_is_kept_with_save_total_limit_1(
    command, write_recipe, tmp_path, signalled
):
    best = {"load_best_model_at_end": True, "greater_is_better": True, "save_total_limit": 1}
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 6}
    signalled.add((3, False))
    outcome = command("train", write_recipe(train={**best, **every}))
    assert outcome.code == 75
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-4").is_dir()
