"""Failed evaluations, a hub that is down, a full disk and a clock that jumps lose no training."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from lora_sft.errors import TrainingError
from lora_sft.export import run_exports
from lora_sft.train.callbacks import MetricsFile
from lora_sft.train.trl import trainer as trainer_file
from lora_sft.train.trl.failed_evaluation import save_and_explain
from tests.commands import read_metrics

DAY_SECONDS = 24 * 3600
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 100}


def read_status(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "run" / "status.json").read_text())


def break_evaluation(monkeypatch, error: Exception) -> None:
    def evaluation_loop(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(trainer_file.SFTTrainer, "evaluation_loop", evaluation_loop)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug in a metric, or a bad row"),
        torch.OutOfMemoryError("no memory for the logits"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_evaluation_that_throws_saves_the_step_and_the_run_goes_on(
    command, write_recipe, tmp_path, monkeypatch, error
):
    recipe = write_recipe(train=EVALUATED)
    with monkeypatch.context() as broken:
        break_evaluation(broken, error)
        outcome = command("train", recipe)
    assert outcome.code == 6, outcome.stderr
    what, where, fix = outcome.stderr.strip().splitlines()[-3:]
    assert f"the evaluation at step 3 failed: {type(error).__name__}" in what
    assert "optimizer step 3" in where
    assert "continues after step 3" in fix
    assert "train.eval_strategy: no" in fix
    assert "Traceback" not in outcome.stderr
    status = read_status(tmp_path)
    assert (status["exit_code"], status["step"], status["state_saved"]) == (6, 3, True)
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert "checkpoint-3" in again.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4]


def test_with_several_processes_only_the_other_process_explains_a_broken_connection(tmp_path):
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=2, output_dir=str(tmp_path)),
        state=SimpleNamespace(global_step=3),
    )
    broken = RuntimeError("gloo: Connection reset by peer")
    assert save_and_explain(trainer, broken) is broken
    explained = save_and_explain(trainer, ValueError("a bad row"))
    assert isinstance(explained, TrainingError)
    assert explained.state_saved is False
    assert "from the last checkpoint" in explained.fix


def test_an_evaluation_before_the_first_step_has_nothing_to_save(
    command, write_recipe, tmp_path, monkeypatch
):
    break_evaluation(monkeypatch, RuntimeError("broken"))
    outcome = command("train", write_recipe(train={**EVALUATED, "eval_on_start": True}))
    assert outcome.code == 6, outcome.stderr
    assert "the evaluation at step 0 failed" in outcome.stderr
    assert read_status(tmp_path)["state_saved"] is False


def test_an_evaluation_that_throws_on_a_full_disk_names_the_disk(
    command, write_recipe, tmp_path, monkeypatch
):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "x"))
    break_evaluation(monkeypatch, RuntimeError("broken"))
    monkeypatch.setattr(trainer_file, "seal", lambda *args: (_ for _ in ()).throw(full))
    outcome = command("train", write_recipe(train=EVALUATED))
    assert outcome.code == 6
    assert "is full" in outcome.stderr
    assert read_status(tmp_path)["state_saved"] is False


@pytest.mark.parametrize("saves", ["steps", "no"])
def test_a_hub_that_times_out_loses_no_training(
    command, write_recipe, tmp_path, monkeypatch, saves
):
    def time_out(*args, **kwargs):
        raise HTTPError("The read operation timed out")

    monkeypatch.setattr(run_exports, "check_can_push", lambda *args: None)
    monkeypatch.setattr(HfApi, "create_repo", time_out)
    recipe = write_recipe(export={"push_to_hub": "me/model"}, train={"save_strategy": saves})
    outcome = command("train", recipe)
    assert outcome.code == 7, outcome.stderr
    what, where, fix = outcome.stderr.strip().splitlines()[-3:]
    assert "the request to the hub failed: The read operation timed out" in what
    assert str(tmp_path / "run" / "adapter") in where
    assert "hf upload me/model" in fix
    status = read_status(tmp_path)
    assert (status["exit_code"], status["step"], status["state_saved"]) == (7, 4, True)
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    written = weights.read_bytes()

    pushed = []
    monkeypatch.setattr(run_exports, "push_folder", lambda *args: pushed.append(args))
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert len(pushed) == 1
    assert weights.read_bytes() == written
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4]
    assert read_status(tmp_path)["exit_code"] == 0


@pytest.mark.parametrize("written", ["a record", "a checkpoint"])
def test_a_disk_that_fills_between_checkpoints_loses_only_the_steps_since_the_last(
    command, write_recipe, tmp_path, monkeypatch, written
):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "x"))
    record, seal = MetricsFile.on_log, trainer_file.seal

    def log_to_full_disk(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise full
        record(self, args, state, control, **kwargs)

    def seal_on_full_disk(checkpoint, *args):
        if checkpoint.name == "checkpoint-4":
            raise full
        seal(checkpoint, *args)

    recipe = write_recipe()
    with monkeypatch.context() as broken:
        if written == "a record":
            broken.setattr(MetricsFile, "on_log", log_to_full_disk)
        else:
            broken.setattr(trainer_file, "seal", seal_on_full_disk)
        outcome = command("train", recipe)
    assert outcome.code == 6, outcome.stderr
    assert "is full" in outcome.stderr
    assert "continues from the last checkpoint" in outcome.stderr
    assert read_status(tmp_path)["step"] == 2
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4]


@pytest.mark.parametrize("jump", [-DAY_SECONDS, DAY_SECONDS], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_no_duration_and_no_checkpoint(
    command, write_recipe, tmp_path, monkeypatch, jump
):
    metrics, now = tmp_path / "run" / "metrics.jsonl", time.time

    def jumping_time() -> float:
        has_jumped = metrics.exists() and len(metrics.read_text().splitlines()) >= 2
        return now() + (jump if has_jumped else 0)

    monkeypatch.setattr(time, "time", jumping_time)
    train = {**EVALUATED, "save_steps": 2, "save_total_limit": 1}
    outcome = command("train", write_recipe(train={**train, "include_num_input_tokens_seen": True}))
    assert outcome.code == 0, outcome.stderr
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    times = [value for record in records for name, value in record.items() if "_runtime" in name]
    rates = [value for record in records for name, value in record.items() if "_per_sec" in name]
    assert len(times) >= 3
    assert all(0 <= each < 300 for each in times)
    assert len(rates) >= 3
    assert all(each > 1 for each in rates)
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
