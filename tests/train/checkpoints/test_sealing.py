"""A checkpoint is accepted only if every file in it is unchanged."""

from __future__ import annotations

import json

import pytest

from lora_sft.file_names import MANIFEST_FILE
from lora_sft.train.checkpoints.sealing import find_damage, seal


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


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_checkpoint_without_a_valid_manifest_is_unfinished(checkpoint, content):
    (checkpoint / MANIFEST_FILE).unlink()
    if content is not None:
        (checkpoint / MANIFEST_FILE).write_text(content)
    assert "never finished" in find_damage(checkpoint)
