"""A save never deletes the last checkpoint from which the run can continue."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from lora_sft.file_names import MANIFEST_FILE
from lora_sft.run_directory import RunDirectory
from lora_sft.train.callbacks import MetricsFile
from lora_sft.train.checkpoints.rotation import rotate_checkpoints
from lora_sft.train.checkpoints.sealing import seal


def save(run: RunDirectory, step: int, *, is_sealed: bool = True) -> Path:
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"moments")
    if is_sealed:
        seal(folder, world_size=1)
    return folder


def list_steps(run: RunDirectory) -> list[int]:
    return [int(each.name.removeprefix("checkpoint-")) for each in run.list_checkpoints()]


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (3, None, [2, 3, 4]),
        (1, None, [4]),
        (1, 2, [2, 4]),
        (2, 2, [2, 4]),
        (3, 1, [1, 3, 4]),
        (2, 4, [3, 4]),
    ],
)
def test_the_oldest_checkpoints_are_deleted_but_never_the_best_or_the_newest(
    run, limit, best, left
):
    saved = [save(run, step) for step in (1, 2, 3, 4)][-1]
    rotate_checkpoints(run, saved, limit, f"/moved/checkpoint-{best}" if best else None)
    assert list_steps(run) == left


def test_an_unfinished_checkpoint_of_a_later_step_is_deleted_and_not_counted(run):
    save(run, 2)
    save(run, 6, is_sealed=False)
    rotate_checkpoints(run, save(run, 3), 2, None)
    assert list_steps(run) == [2, 3]


def test_a_damaged_checkpoint_of_a_later_step_does_not_replace_the_one_just_saved(run):
    save(run, 2)
    damaged = save(run, 4)
    (damaged / "adapter_model.safetensors").write_bytes(b"weightz")
    rotate_checkpoints(run, save(run, 3), 1, None)
    assert list_steps(run) == [3, 4]


def test_a_checkpoint_with_a_damaged_manifest_is_neither_counted_nor_deleted(run):
    (save(run, 1) / MANIFEST_FILE).write_text("{")
    save(run, 2)
    rotate_checkpoints(run, save(run, 3), 2, None)
    assert list_steps(run) == [1, 2, 3]


def test_a_linked_checkpoint_is_deleted_with_its_files(run, tmp_path):
    link, disk = save(run, 1), tmp_path / "disk"
    link.rename(disk)
    link.symlink_to(disk)
    rotate_checkpoints(run, save(run, 2), 1, None)
    assert list_steps(run) == [2]
    assert not disk.exists()


def test_a_note_in_an_old_checkpoint_stays(run):
    old = save(run, 1)
    (old / "notes.txt").write_text("mine")
    rotate_checkpoints(run, save(run, 2), 1, None)
    assert [path.name for path in old.iterdir()] == ["notes.txt"]


def test_a_checkpoint_that_cannot_be_deleted_gives_a_warning(run, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    old, saved = save(run, 1), save(run, 2)
    monkeypatch.setattr(Path, "unlink", refuse)
    rotate_checkpoints(run, saved, 1, None)
    assert f"cannot delete {old / MANIFEST_FILE}: Permission denied" in capsys.readouterr().err


def test_a_run_that_becomes_longer_still_has_its_last_checkpoint(command, write_recipe, tmp_path):
    """With `save_total_limit: 1` the Trainer kept only the best one at the end of a run."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    recipe = write_recipe(train={**best, **every, "greater_is_better": True})
    checkpoints = tmp_path / "run" / "checkpoints"
    assert command("train", recipe).code == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    longer = command("train", recipe, "train.max_steps=6")
    assert longer.code == 0, longer.stderr
    assert f"continuing from {checkpoints / 'checkpoint-4'}" in longer.stderr


def test_a_stop_after_a_killed_save_keeps_a_complete_checkpoint(
    command, write_recipe, tmp_path, monkeypatch
):
    """The killed save left a folder of a later step; `save_total_limit: 1` kept that one."""
    recipe = write_recipe(train={"max_steps": 8, "save_steps": 2, "save_total_limit": 1})
    log = MetricsFile.on_log

    def log_and_stop(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step in (2, 4):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "on_log", log_and_stop)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert command("train", recipe).code == 75
    first = checkpoints / "checkpoint-3"
    shutil.copytree(first, checkpoints / "checkpoint-6")
    (checkpoints / "checkpoint-6" / MANIFEST_FILE).unlink()
    assert command("train", recipe).code == 75
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-5"]
