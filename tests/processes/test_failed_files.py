"""A file of a run that cannot be read or written gives an error of three lines, never a crash."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_sft.errors import ExportError, TrainingError
from lora_sft.processes.failed_files import explain_failed_files
from lora_sft.train.callbacks import MetricsFile
from lora_sft.train.checkpoints import sealing

NO_FOLDER = Path("/proc/self/fdinfo")  # exists on Linux, and nothing can be created in it
pytestmark = pytest.mark.skipif(not NO_FOLDER.exists(), reason="only Linux has /proc")


def fail(number, path=None):
    raise OSError(number, os.strerror(number), *([str(path)] if path else []))


def link_folder(run: Path, name: str) -> Path:
    """Make `name` in the run a link to a folder in which nothing can be created."""
    run.mkdir(exist_ok=True)
    (run / name).symlink_to(NO_FOLDER)
    return run / name


FAILURES = {
    "a missing folder": lambda run: (run / "metrics.jsonl").open("a"),
    "a failed disk": lambda run: fail(errno.EIO),
    "a read-only disk": lambda run: fail(errno.EROFS, run / "status.json"),
    "torch, a missing folder": lambda run: torch.save({}, run / "optimizer.pt"),
    "torch": lambda run: torch.save({}, link_folder(run, "a") / "optimizer.pt"),
    "safetensors": lambda run: save_file({}, link_folder(run, "a") / "adapter.safetensors"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_error_says_what_failed_and_how_to_go_on(tmp_path, name):
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as caught, explain_failed_files(run):
        FAILURES[name](run)
    assert caught.value.exit_code == 6
    assert str(run) in caught.value.where
    assert "start the same command again" in caught.value.fix
    assert "full" not in caught.value.what


@pytest.mark.parametrize(
    "error",
    [
        ExportError("x"),
        ValueError("x"),
        FileNotFoundError(2, "x"),
        OSError(errno.EIO, "x", "/data"),
    ],
)
def test_an_error_about_something_else_is_raised_unchanged(error, tmp_path):
    with pytest.raises(type(error)) as caught, explain_failed_files(tmp_path):
        raise error
    assert caught.value is error


def test_a_full_disk_is_still_reported_as_full(tmp_path):
    with pytest.raises(TrainingError) as caught, explain_failed_files(tmp_path):
        fail(errno.ENOSPC, tmp_path / "metrics.jsonl")
    assert "is full" in caught.value.what


def check_three_lines(outcome, code):
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    lines = outcome.stderr.splitlines()[-3:]
    assert [line.partition(":")[0] for line in lines] == ["error", "where", "fix"]
    return lines


def test_an_output_folder_that_cannot_be_written_is_refused(command, write_recipe, tmp_path):
    recipe = write_recipe()
    check_three_lines(command("train", recipe, f"output_dir={NO_FOLDER / 'run'}"), 2)
    link_folder(tmp_path, "run")
    check_three_lines(command("train", recipe), 2)


@pytest.mark.parametrize("name", ["checkpoints", "adapter"])
def test_a_folder_of_the_run_that_cannot_be_written_is_refused_before_training(
    command, write_recipe, tmp_path, name
):
    """A link to a disk that cannot be written, a link to nothing, and a file."""
    recipe, run = write_recipe(), tmp_path / "run"
    path = link_folder(run, name)
    what, _, _ = check_three_lines(command("train", recipe), 2)
    assert f"cannot write into {path}" in what
    path.unlink()
    path.symlink_to(tmp_path / "nothing")
    check_three_lines(command("train", recipe), 2)
    path.unlink()
    path.write_text("mine")
    check_three_lines(command("train", recipe), 2)
    assert path.read_text() == "mine"


def test_a_run_whose_folder_is_removed_ends_with_an_error(
    command, write_recipe, tmp_path, monkeypatch
):
    log = MetricsFile.on_log

    def remove_and_log(self, args, state, control, **kwargs):
        if state.global_step == 2:
            shutil.rmtree(tmp_path / "run")
        log(self, args, state, control, **kwargs)

    monkeypatch.setattr(MetricsFile, "on_log", remove_and_log)
    what, where, _ = check_three_lines(command("train", write_recipe()), 6)
    assert "the output directory was removed while the run trained" in what
    assert str(tmp_path / "run") in where


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_whose_folder_is_removed_silently_still_saves_its_work(
    command, write_recipe, tmp_path, monkeypatch, saves
):
    """Nothing is logged after the removal. The next save makes the folder again."""
    run, log = tmp_path / "run", MetricsFile.on_log

    def log_and_remove(self, args, state, control, **kwargs):
        if state.global_step == 1:
            log(self, args, state, control, **kwargs)
            shutil.rmtree(run)

    strategy = "steps" if saves else "no"
    recipe = write_recipe(train={"save_strategy": strategy, "save_steps": 3})
    monkeypatch.setattr(MetricsFile, "on_log", log_and_remove)
    what, _, _ = check_three_lines(command("train", recipe), 6)
    assert "the output directory was removed, or its manifest.json" in what
    saved = run / "checkpoints" / "checkpoint-3" if saves else run / "adapter"
    assert (saved / "adapter_model.safetensors").exists()
    if saves:
        assert f"--resume {saved}" in command("train", recipe).stderr


def test_a_disk_that_fails_during_a_save_leaves_the_earlier_checkpoint(
    command, write_recipe, tmp_path, monkeypatch
):
    """After that the run is finished on a good disk, and the disk becomes read-only."""
    recipe, run = write_recipe(train={"save_total_limit": 1}), tmp_path / "run"
    flush, write = sealing._flush, Path.open

    def fail_later(path):
        if path.parent.name == "checkpoint-4":
            fail(errno.EIO)
        flush(path)

    def refuse(path, mode="r", *args, **kwargs):
        if set(mode) & set("wax+") and path.is_relative_to(run):
            fail(errno.EROFS, path)
        return write(path, mode, *args, **kwargs)

    monkeypatch.setattr(sealing, "_flush", fail_later)
    what, _, _ = check_three_lines(command("train", recipe), 6)
    assert "Input/output error" in what
    status = json.loads((run / "status.json").read_text())
    assert (status["exit_code"], status["step"]) == (6, 2)
    monkeypatch.setattr(sealing, "_flush", flush)
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert f"continuing from {run / 'checkpoints' / 'checkpoint-2'}" in again.stderr
    monkeypatch.setattr(Path, "open", refuse)
    finished = command("train", recipe)
    assert finished.code == 0, finished.stderr
    assert "nothing to do" in finished.stderr
