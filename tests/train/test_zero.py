"""Unverified states beside a checkpoint never stay, because they are pickles that can run code."""

from __future__ import annotations

import pytest

from lora_sft.train.zero import _remove_folder


def test_a_folder_or_a_link_is_removed_but_not_what_the_link_points_to(tmp_path):
    folder, link = tmp_path / "global_step2_universal", tmp_path / "link"
    (folder / "zero").mkdir(parents=True)
    link.symlink_to(folder)
    _remove_folder(link)
    assert not link.is_symlink()
    assert (folder / "zero").is_dir()
    _remove_folder(folder)
    assert not folder.exists()
    _remove_folder(folder)


def test_a_folder_that_cannot_be_removed_is_an_error(tmp_path):
    (tmp_path / "states").write_text("not a folder")
    with pytest.raises(OSError, match="Not a directory"):
        _remove_folder(tmp_path / "states")
