"""A finished run whose adapter has changed is not called finished, and can be mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE


@pytest.fixture
def finished(command, write_recipe, tmp_path):
    """Return the recipe of a finished run. The run is in `tmp_path / "run"`."""
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    return recipe


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_refused_and_the_named_option_mends_the_adapter(
    command, finished, tmp_path
):
    run = tmp_path / "run"
    for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE):
        whole = (run / "adapter" / name).read_bytes()
        flip_bit(run / "adapter" / name, len(whole) - 9)
        refused = command("train", finished)
        assert refused.code == 6
        what, where, fix = refused.stderr.splitlines()[-3:]
        assert f"not the one that it wrote: {name} has changed since it was saved" in what
        assert where == f"where: {run / 'adapter'}"
        option = f"--resume {run / 'checkpoints' / 'checkpoint-4'}"
        assert option in fix
        assert json.loads((run / "status.json").read_text())["exit_code"] == 0
        assert command("train", finished, *option.split()).code == 0
        assert (run / "adapter" / name).read_bytes() == whole


def test_without_a_checkpoint_the_fix_is_to_train_again(command, finished, tmp_path):
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    flip_bit(tmp_path / "run" / "adapter" / ADAPTER_WEIGHTS_FILE, -1)
    refused = command("train", finished)
    assert refused.code == 6
    assert "fix:   to write the adapter again: --overwrite" in refused.stderr


def test_a_deleted_config_is_written_again(command, finished, tmp_path):
    config = tmp_path / "run" / "adapter" / ADAPTER_CONFIG_FILE
    before = config.read_bytes()
    config.unlink()
    assert command("train", finished).code == 0
    assert config.read_bytes() == before


def test_other_files_of_the_adapter_may_be_edited(command, finished, tmp_path):
    card = tmp_path / "run" / "adapter" / "README.md"
    card.write_text("my own card")
    again = command("train", finished)
    assert again.code == 0
    assert "nothing to do" in again.stderr
    assert card.read_text() == "my own card"


@pytest.mark.parametrize("damage", [{"adapter_model.safetensors": 1}, ["no", "record"]])
def test_a_damaged_record_is_a_damaged_manifest(command, finished, tmp_path, damage):
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "adapter": damage}))
    refused = command("train", finished)
    assert refused.code == 2
    assert "manifest.json of this run is missing or damaged" in refused.stderr
