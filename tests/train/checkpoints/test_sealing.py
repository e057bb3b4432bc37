"""A checkpoint is accepted only if every file in it is unchanged."""

from __future__ import annotations

import errno
import json
import os

import pytest

from lora_sft.file_names import MANIFEST_FILE
from lora_sft.train.checkpoints import sealing
from lora_sft.train.checkpoints.sealing import find_damage, read_manifest, seal


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-3"
    (folder / "global_step3").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "global_step3" / "states.pt").write_bytes(b"states")
    seal(folder, world_size=2)
    return folder


def test_a_sealed_checkpoint_has_no_damage(checkpoint):
    assert find_damage(checkpoint) == ""
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    assert manifest["world_size"] == 2
    assert set(manifest["files"]) == {"adapter_model.safetensors", "global_step3/states.pt"}


def test_a_changed_byte_is_found(checkpoint):
    (checkpoint / "global_step3" / "states.pt").write_bytes(b"statet")
    assert find_damage(checkpoint) == "global_step3/states.pt has changed since it was saved"


def test_a_shortened_file_is_found(checkpoint):
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weigh")
    assert "adapter_model.safetensors" in find_damage(checkpoint)


def test_a_missing_file_is_named(checkpoint):
    (checkpoint / "adapter_model.safetensors").unlink()
    assert find_damage(checkpoint) == "adapter_model.safetensors is missing"


def test_a_checkpoint_without_a_manifest_is_unfinished(checkpoint):
    (checkpoint / MANIFEST_FILE).unlink()
    assert "never finished" in find_damage(checkpoint)


WHOLE = {"world_size": 2, "files": {"a.pt": {"bytes": 1, "sha256": "0"}}}
DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"\xff\xfe\x00\x80",
    b"[" * 100_000,
    *(
        json.dumps({**WHOLE, **change}).encode()
        for change in (
            {"files": {}},
            {"files": ["a.pt"]},
            {"files": {"a.pt": "0"}},
            {"files": {"a.pt": {"bytes": 1}}},
            {"files": {"a.pt": {"sha256": "0"}}},
            {"files": {"a.pt": {"bytes": "1", "sha256": "0"}}},
            {"files": {"a.pt": {"bytes": 1, "sha256": None}}},
            {"world_size": "2"},
            {"world_size": None},
        )
    ),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_manifest_is_not_taken_for_an_unfinished_checkpoint(checkpoint, content):
    (checkpoint / MANIFEST_FILE).write_bytes(content)
    assert find_damage(checkpoint) == "manifest.json is damaged"
    assert read_manifest(checkpoint) is None


def test_a_file_that_the_disk_cannot_read_is_named(checkpoint, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sealing, "_hash", fail)
    damage = find_damage(checkpoint)
    assert damage == "adapter_model.safetensors cannot be read: Input/output error"
