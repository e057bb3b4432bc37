"""A write without room is named; nothing else is taken for one."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from lora_sft.cache_folder import find_cache_folder
from lora_sft.errors import ExportError, TrainingError
from lora_sft.processes import full_disk
from lora_sft.processes.full_disk import Place, full_disk_named

FULL = Path("/dev/full")  # takes nothing, and says so as a disk does
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")


def write_text():
    with FULL.open("w") as file:
        file.write("a record")


def write_zip():
    torch.save({"moments": torch.zeros(100_000)}, FULL)


@pytest.mark.parametrize("write", [write_text, write_zip])
def test_a_write_without_room_says_where_and_how_much_is_free(write, tmp_path, monkeypatch):
    monkeypatch.setattr(full_disk, "_is_full", lambda place: place.folder == tmp_path)
    with pytest.raises(TrainingError) as caught, full_disk_named(tmp_path):
        write()
    assert f"no room on the disk of {tmp_path}" in caught.value.what
    assert "MB free" in caught.value.what
    assert "save_total_limit" in caught.value.fix
    assert caught.value.exit_code == 6


def test_the_disk_that_is_full_is_named_with_what_helps_there(tmp_path, monkeypatch):
    """The cache's, though the run lies elsewhere and the error says nothing of either."""
    cache = tmp_path / "disk" / "not" / "made" / "yet"
    monkeypatch.setenv("LORA_SFT_CACHE", str(cache))
    monkeypatch.setattr(full_disk, "_is_full", lambda place: place.folder == cache)
    with pytest.raises(TrainingError) as caught, full_disk_named(tmp_path / "run"):
        write_text()
    assert f"no room on the disk of {cache}" in caught.value.what
    assert "set LORA_SFT_CACHE" in caught.value.fix
    assert "save_total_limit" not in caught.value.fix


def test_no_disk_is_blamed_where_none_is_full(tmp_path, monkeypatch):
    """A quota, say; the folders that are written to stand there with what is free."""
    monkeypatch.setattr(full_disk, "_is_full", lambda place: False)
    with pytest.raises(TrainingError) as caught, full_disk_named(tmp_path):
        write_text()
    assert "no room on a disk" in caught.value.what
    for folder in (tmp_path, find_cache_folder(), Path(tempfile.gettempdir())):
        assert f"{folder}: " in caught.value.where


def test_a_path_that_the_error_names_is_believed(tmp_path):
    path = tmp_path / "elsewhere" / "file"
    with pytest.raises(TrainingError) as caught, full_disk_named(tmp_path / "run"):
        raise RuntimeError("no space") from OSError(errno.ENOSPC, "No space left", str(path))
    assert f"no room on the disk of {path}" in caught.value.what


def test_a_disk_with_room_is_not_full(tmp_path):
    """`/proc` has no blocks at all; what has none is no disk."""
    assert not full_disk._is_full(Place(tmp_path, ""))
    assert not full_disk._is_full(Place(Path("/proc"), ""))


@pytest.mark.parametrize("error", [ExportError("x"), ValueError("x"), FileNotFoundError(2, "x")])
def test_another_error_stays_what_it_is(error, tmp_path):
    with pytest.raises(type(error)) as caught, full_disk_named(tmp_path):
        raise error
    assert caught.value is error
