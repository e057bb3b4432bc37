"""A tracker that is down never ends a training, and its lost calls are counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from lora_sft.train import trackers
from tests.commands import read_metrics

DOWN = OSError(5, "the tracker is out of reach")


class Tracker(TrainerCallback):
    """A tracker that fails in the events of `broken`."""

    broken: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._answer("__init__")

    def on_train_begin(self, *args, **kwargs):
        self._answer("on_train_begin")

    def on_log(self, *args, **kwargs):
        self._answer("on_log")

    def on_train_end(self, *args, **kwargs):
        self._answer("on_train_end")

    def _answer(self, event: str) -> None:
        self.calls.append(event)
        if event in self.broken:
            raise DOWN


@pytest.fixture
def make_tracker(monkeypatch):
    """Return a function that makes a guarded tracker which fails in some events."""

    def make(*broken: str) -> list[TrainerCallback]:
        kind = type("Broken", (Tracker,), {"broken": broken})
        monkeypatch.setattr(trackers, "get_reporting_integration_callbacks", lambda names: [kind])
        return trackers.make_trackers(["fake"], Path("run/metrics.jsonl"))

    return make


def run_events(tracker: TrainerCallback, logs: int) -> None:
    tracker.on_train_begin()
    for _ in range(logs):
        tracker.on_log()
    tracker.on_train_end()


@pytest.mark.parametrize("broken", ["on_train_begin", "on_log", "on_train_end"])
def test_a_failure_is_shown_once_and_the_lost_calls_are_counted(
    make_tracker, capfd, monkeypatch, broken
):
    monkeypatch.setattr(trackers, "FIRST_REST_SECONDS", 0.0)
    (tracker,) = make_tracker(broken)
    run_events(tracker, logs=5)
    shown = capfd.readouterr().err
    lost = 5 if broken == "on_log" else 1
    assert shown.count("is out of reach") == 1
    assert f"the tracker fake failed in {broken}" in shown
    assert "run/metrics.jsonl has every record" in shown
    assert f"lost {lost} calls" in shown
    assert tracker.calls.count("on_log") == 5


def test_a_tracker_that_fails_rests_before_the_next_try(make_tracker, capfd, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    (tracker,) = make_tracker("on_log")
    for _ in range(1000):
        tracker.on_log()
        now[0] += 1.0
    assert 5 <= tracker.calls.count("on_log") <= 20
    tracker.on_train_end()
    assert "lost 1000 calls" in capfd.readouterr().err
    assert tracker.calls[-1] == "on_train_end"


def test_a_tracker_that_comes_back_gets_the_later_records(make_tracker, capfd, monkeypatch):
    monkeypatch.setattr(trackers, "FIRST_REST_SECONDS", 0.0)
    (tracker,) = make_tracker("on_log")
    tracker.on_log()
    tracker.broken = ()
    run_events(tracker, logs=3)
    assert "lost 1 calls" in capfd.readouterr().err


def test_a_tracker_that_cannot_be_made_is_left_out(make_tracker, capfd):
    assert make_tracker("__init__") == []
    assert "the tracker fake failed in its start" in capfd.readouterr().err


def test_a_tracker_whose_folder_goes_away_does_not_end_the_training(
    command, write_recipe, tmp_path, monkeypatch
):
    from torch.utils.tensorboard import SummaryWriter

    calls = []

    def add_scalar(self, *args, **kwargs):
        calls.append(args)
        raise DOWN

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    outcome = command("train", write_recipe(train={"report_to": "tensorboard"}))
    assert outcome.code == 0, outcome.stderr
    assert calls
    assert outcome.stderr.count("out of reach") == 1
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 0


def test_a_tracker_without_a_server_does_not_end_the_training(
    command, write_recipe, tmp_path, monkeypatch
):
    """The package is a stand-in: its `init` fails, as without a network or a login."""
    package = tmp_path / "site" / "wandb"
    errors = package / "sdk" / "lib" / "config_util.py"
    errors.parent.mkdir(parents=True)
    errors.write_text("class ConfigError(Exception):\n    pass\n")
    (package / "__init__.py").write_text(
        "run = None\ndef init(*args, **kwargs):\n    raise ConnectionError('no route to wandb')\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    outcome = command("train", write_recipe(train={"report_to": "wandb", "max_steps": 2}))
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        del sys.modules[name]
    assert outcome.code == 0, outcome.stderr
    assert "the tracker wandb failed" in outcome.stderr
    assert outcome.stderr.count("no route to wandb") == 1
    assert "Traceback" not in outcome.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2]
