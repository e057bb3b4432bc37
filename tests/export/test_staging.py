"""A run replaces only its own earlier merge, and the earlier merge is never lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from lora_sft.errors import ExportError
from lora_sft.export.merge_plan import make_merge_plan
from lora_sft.export.merging import merge
from lora_sft.export.staging import (
    Owner,
    check_output_is_free,
    move_into_place,
    open_staging_folder,
    write_owner_file,
)
from tests.export.adapters import make_adapter


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    (tmp_path / "run").mkdir()
    return Owner("id", tmp_path / "run")


def put_model(output: Path, owner: Owner, text: str) -> None:
    with open_staging_folder(output) as staged:
        (staged / "model.safetensors").write_text(text)
        (staged / "README.md").write_text("card")
        (staged / "sub").mkdir()
        (staged / "sub" / "a").write_text("a")
        write_owner_file(staged, owner)
        move_into_place(staged, output, owner)


def read_model(output: Path) -> str:
    return (output / "model.safetensors").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", "mine", "README.md was changed after the merge"),  # the size is the same
        ("model.safetensors", "requantised", "model.safetensors was changed after the merge"),
        ("sub/mine", "mine", "the merge did not write sub/mine"),
        ("model.gguf", "mine", "the merge did not write model.gguf"),
    ],
)
def test_a_merge_with_a_changed_or_added_file_is_never_deleted(
    tmp_path, owner, name, text, message
):
    output = tmp_path / "merged"
    put_model(output, owner, "1")
    (output / name).write_text(text)
    os.utime(output / name, (1, 1))
    for attempt in (check_output_is_free, lambda *at: put_model(*at, "2")):
        with pytest.raises(ExportError, match=message) as refused:
            attempt(output, owner)
        assert refused.value.exit_code == 7
    assert (output / name).read_text() == text
    (output / name).unlink()
    put_model(output, owner, "2")
    assert read_model(output) == "2"


def test_a_copy_of_a_run_cannot_replace_its_merge_but_a_moved_run_can(tmp_path, owner):
    output, other = tmp_path / "merged", Owner("id", tmp_path / "copy")
    (owner.path / "manifest.json").write_text('{"id": "id"}')
    put_model(output, owner, "1")
    shutil.copytree(owner.path, other.path)
    with pytest.raises(ExportError, match=f"the run in {owner.path} wrote it, and one of"):
        put_model(output, other, "2")
    assert read_model(output) == "1"
    alias = tmp_path / "alias"
    alias.symlink_to(owner.path)
    put_model(output, Owner("id", alias), "2")
    shutil.rmtree(other.path)
    owner.path.rename(other.path)
    put_model(output, other, "3")
    assert read_model(output) == "3"
    (owner.path).mkdir()
    (owner.path / "manifest.json").write_text('{"id": "another run"}')
    put_model(output, other, "4")
    assert read_model(output) == "4"


@pytest.mark.parametrize("target", ["merged", "empty", "missing"])
def test_a_merge_into_a_link_writes_to_its_target_and_keeps_the_link(tmp_path, tiny_model, target):
    adapter = tmp_path / "adapter"
    make_adapter(tiny_model, adapter, {"target_modules": "all-linear"})
    output, disk = tmp_path / "merged", tmp_path / "disk"
    disk.mkdir()
    output.symlink_to(disk / "model")
    owner = Owner("id", tmp_path)
    if target == "empty":
        (disk / "model").mkdir()
    for _ in range(2 if target == "merged" else 1):
        merge(make_merge_plan(adapter, output, verify="none", owner=owner))
    assert output.readlink() == disk / "model"
    assert (disk / "model" / "model.safetensors").exists()
    assert [path.name for path in disk.iterdir()] == ["model"]
    check_output_is_free(output, owner)
    with pytest.raises(ExportError, match="the output exists already"):
        make_merge_plan(adapter, output)


@pytest.mark.parametrize("is_run", [True, False])
def test_the_earlier_merge_is_restored_after_a_kill_between_the_two_renames(
    tmp_path, owner, capfd, monkeypatch, is_run
):
    output = tmp_path / "merged"
    put_model(output, owner, "1")
    rename = Path.rename

    def rename_and_die(path: Path, target: Path) -> None:
        rename(path, target)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_and_die)
        with pytest.raises(SystemExit):
            put_model(output, owner, "2")
    assert not output.exists()
    with contextlib.nullcontext() if is_run else pytest.raises(ExportError, match="exists already"):
        check_output_is_free(output, owner if is_run else None)
    assert read_model(output) == "1"
    assert f"{output}: restored the earlier merge" in capfd.readouterr().err
    put_model(output, owner, "3")
    assert read_model(output) == "3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "run"]


def test_an_earlier_merge_that_cannot_be_deleted_is_named_and_never_restored(
    tmp_path, owner, capfd, monkeypatch
):
    """On NFS a file that a server still reads stays in its folder."""
    output, replaced = tmp_path / "merged", tmp_path / ".merged.replaced"
    put_model(output, owner, "1")

    def refuse(folder: Path) -> None:
        assert folder == replaced
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        put_model(output, owner, "2")
        assert read_model(output) == "2"
        warning = f"warning: the earlier merge cannot be deleted: Directory not empty: {replaced}"
        assert warning in capfd.readouterr().err
        with pytest.raises(ExportError, match="the earlier merge cannot be deleted"):
            put_model(output, owner, "3")
    assert read_model(output) == "2"
    output.rename(tmp_path / "elsewhere")
    check_output_is_free(output, owner)
    assert not output.exists()
    put_model(output, owner, "3")
    assert read_model(output) == "3"
    assert not replaced.exists()
