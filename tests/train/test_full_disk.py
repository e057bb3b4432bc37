"""A write without room is named; nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_sft.errors import ExportError, TrainingError
from lora_sft.train.full_disk import full_disk_named

FULL = Path("/dev/full")  # takes nothing, and says so as a disk does
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")


def write_text():
    with FULL.open("w") as file:
        file.write("a record")


def write_zip():
    torch.save({"moments": torch.zeros(100_000)}, FULL)


@pytest.mark.parametrize("write", [write_text, write_zip])
def test_a_write_without_room_says_where_and_how_much_is_free(write, tmp_path):
    with pytest.raises(TrainingError) as caught, full_disk_named(tmp_path):
        write()
    assert f"no room on the disk of {tmp_path}" in caught.value.what
    assert "MB free" in caught.value.what
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("error", [ExportError("x"), ValueError("x"), FileNotFoundError(2, "x")])
def test_another_error_stays_what_it_is(error, tmp_path):
    with pytest.raises(type(error)) as caught, full_disk_named(tmp_path):
        raise error
    assert caught.value is error
