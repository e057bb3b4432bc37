"""A write to a full disk gives an error with the disk's path; other errors stay unchanged."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from lora_sft.cache_folder import find_cache_folder
from lora_sft.errors import ExportError, TrainingError
from lora_sft.processes import full_disk
from lora_sft.processes.full_disk import WrittenFolder, explain_full_disk

FULL = Path("/dev/full")  # every write to it fails with ENOSPC
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="/dev/full exists only on Linux")


def write_text():
    with FULL.open("w") as file:
        file.write("a record")


def write_zip():
    torch.save({"moments": torch.zeros(100_000)}, FULL)


@pytest.mark.parametrize("write", [write_text, write_zip])
def test_a_write_to_a_full_disk_names_its_path_and_the_free_space(write, tmp_path, monkeypatch):
    monkeypatch.setattr(full_disk, "_is_full", lambda written: written.folder == tmp_path)
    with pytest.raises(TrainingError) as caught, explain_full_disk(tmp_path):
        write()
    assert f"the disk of {tmp_path} is full" in caught.value.what
    assert "MB free" in caught.value.what
    assert "save_total_limit" in caught.value.fix
    assert caught.value.exit_code == 6


def test_the_only_full_disk_is_named_with_a_fix_for_it(tmp_path, monkeypatch):
    """Here the cache's disk is full. The run is on another disk, and the error names no path."""
    cache = tmp_path / "disk" / "not" / "made" / "yet"
    monkeypatch.setenv("LORA_SFT_CACHE", str(cache))
    monkeypatch.setattr(full_disk, "_is_full", lambda written: written.folder == cache)
    with pytest.raises(TrainingError) as caught, explain_full_disk(tmp_path / "run"):
        write_text()
    assert f"the disk of {cache} is full" in caught.value.what
    assert "set LORA_SFT_CACHE" in caught.value.fix
    assert "save_total_limit" not in caught.value.fix


def test_if_no_disk_is_full_now_the_error_lists_the_free_space_of_each(tmp_path, monkeypatch):
    """The cause can be a quota."""
    monkeypatch.setattr(full_disk, "_is_full", lambda written: False)
    with pytest.raises(TrainingError) as caught, explain_full_disk(tmp_path):
        write_text()
    assert "a disk is full" in caught.value.what
    for folder in (tmp_path, find_cache_folder(), Path(tempfile.gettempdir())):
        assert f"{folder}: " in caught.value.where


def test_the_path_in_the_error_is_used(tmp_path):
    path = tmp_path / "elsewhere" / "file"
    with pytest.raises(TrainingError) as caught, explain_full_disk(tmp_path / "run"):
        raise RuntimeError("no space") from OSError(errno.ENOSPC, "No space left", str(path))
    assert f"the disk of {path} is full" in caught.value.what


def test_a_disk_with_room_is_not_full(tmp_path):
    """`/proc` has no blocks, so it is not a disk and never full."""
    assert not full_disk._is_full(WrittenFolder(tmp_path, ""))
    assert not full_disk._is_full(WrittenFolder(Path("/proc"), ""))


@pytest.mark.parametrize("error", [ExportError("x"), ValueError("x"), FileNotFoundError(2, "x")])
def test_another_error_is_raised_unchanged(error, tmp_path):
    with pytest.raises(type(error)) as caught, explain_full_disk(tmp_path):
        raise error
    assert caught.value is error
