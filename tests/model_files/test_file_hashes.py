"""Every byte of a file decides its hash; an unchanged file is read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_sft.model_files import file_hashes
from lora_sft.model_files.file_hashes import hash_files


@pytest.fixture
def reads(monkeypatch, tmp_path: Path) -> list[Path]:
    """Return a list that gets the path of each file that is read. The cache is empty."""
    monkeypatch.setenv("LORA_SFT_CACHE", str(tmp_path / "cache"))
    read, plain = [], file_hashes._hash
    monkeypatch.setattr(file_hashes, "_hash", lambda path: (read.append(path), plain(path))[1])
    return read


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100_000))
    return path


@pytest.fixture
def settled(monkeypatch) -> None:
    """Let every file count as old enough for its hash to be kept."""
    monkeypatch.setattr(file_hashes, "SETTLED_NANOSECONDS", -(10**12))


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once(weights, reads):
    assert hash_files([weights]) == hash_files([weights])
    assert reads == [weights]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("place", [0, 33_333, 99_999])
def test_one_changed_byte_is_seen_even_if_size_and_time_are_as_before(weights, reads, place):
    before, times = hash_files([weights]), weights.stat()
    with weights.open("r+b") as file:
        file.seek(place)
        file.write(b"x")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_files([weights]) != before
    assert len(reads) == 2


def test_the_hash_of_a_file_that_was_just_written_is_not_kept(weights, reads):
    """It may be written again within the resolution of the file system's clock."""
    assert hash_files([weights]) == hash_files([weights])
    assert len(reads) == 2


@pytest.mark.usefixtures("settled")
def test_without_a_place_for_the_cache_each_start_reads_the_file(weights, reads, monkeypatch):
    monkeypatch.setenv("LORA_SFT_CACHE", str(weights))  # a file: no folder can be made in it
    assert hash_files([weights]) == hash_files([weights])
    assert len(reads) == 2
