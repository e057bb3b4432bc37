"""A link is followed only if it stays inside its folder, or inside one entry of the hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_sft.folder_links import leads_outside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file, beside a folder with a private file."""
    for name in ("folder", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "folder"


@pytest.mark.parametrize(
    "target", ["../private/file", "../private/../private/file", "hop", "../folder-2/file"]
)
def test_a_link_to_a_file_elsewhere_leads_outside(folder, target):
    (folder.parent / "folder-2").mkdir()
    (folder.parent / "folder-2" / "file").touch()
    (folder / "hop").symlink_to(folder.parent / "private" / "file")
    (folder / "link").symlink_to(target)
    assert leads_outside(folder / "link", folder)


def test_a_file_behind_a_linked_folder_leads_outside(folder):
    (folder / "more").symlink_to(folder.parent / "private", target_is_directory=True)
    assert leads_outside(folder / "more" / "file", folder)


def test_a_plain_file_and_a_link_inside_the_folder_stay(folder):
    (folder / "link").symlink_to("../folder/file")
    assert not leads_outside(folder / "file", folder)
    assert not leads_outside(folder / "link", folder)


def test_the_folder_itself_may_be_a_link(folder):
    alias = folder.parent / "alias"
    alias.symlink_to(folder, target_is_directory=True)
    (folder / "link").symlink_to("../private/file")
    assert not leads_outside(alias / "file", alias)
    assert leads_outside(alias / "link", alias)


def make_cached_model(hub: Path) -> Path:
    """Write one file as the hub's cache does, and return the folder of its revision."""
    snapshot = hub / "models--me--base" / "snapshots" / "0123"
    (snapshot / "sub").mkdir(parents=True)
    (hub / "models--me--base" / "blobs").mkdir()
    (hub / "models--me--base" / "blobs" / "abcd").write_text("text")
    (snapshot / "LICENSE").symlink_to("../../blobs/abcd")
    (snapshot / "sub" / "rows").symlink_to("../../../blobs/abcd")
    return snapshot


def test_a_snapshot_in_the_hubs_cache_may_link_to_its_own_blobs(tmp_path):
    snapshot = make_cached_model(tmp_path)
    assert not leads_outside(snapshot / "LICENSE", snapshot)
    assert not leads_outside(snapshot / "sub" / "rows", snapshot)
    assert not leads_outside(snapshot / "sub" / "rows", snapshot / "sub")


def test_a_snapshot_may_not_link_to_another_model_or_through_linked_blobs(folder, tmp_path):
    snapshot = make_cached_model(tmp_path)
    (snapshot / "other").symlink_to(folder / "file")
    assert leads_outside(snapshot / "other", snapshot)
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert leads_outside(snapshot / "LICENSE", snapshot)
