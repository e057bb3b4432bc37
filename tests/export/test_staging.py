"""What lies at the output's place is replaced by the run that made it, and is never lost."""

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
    mark_as_made_by,
    put_in_place,
    staged_output,
)
from tests.export.adapters import make_adapter


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    (tmp_path / "run").mkdir()
    return Owner("id", tmp_path / "run")


def put_model(output: Path, owner: Owner, text: str) -> None:
    with staged_output(output) as staged:
        (staged / "model.safetensors").write_text(text)
        (staged / "README.md").write_text("card")
        (staged / "sub").mkdir()
        (staged / "sub" / "a").write_text("a")
        mark_as_made_by(staged, owner)
        put_in_place(staged, output, owner)


def read_model(output: Path) -> str:
    return (output / "model.safetensors").read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("README.md", "mine", "was changed since the merge: README.md"),  # of the same size
        ("model.safetensors", "requantised", "was changed since the merge: model.safetensors"),
        ("sub/mine", "mine", "holds what the merge did not write: sub/mine"),
        ("model.gguf", "mine", "holds what the merge did not write: model.gguf"),
    ],
)
def test_what_somebody_edited_or_put_into_a_merge_is_never_deleted(
    tmp_path, owner, name, text, said
):
    output = tmp_path / "merged"
    put_model(output, owner, "1")
    (output / name).write_text(text)
    os.utime(output / name, (1, 1))
    for attempt in (check_output_is_free, lambda *at: put_model(*at, "2")):
        with pytest.raises(ExportError, match=said) as refused:
            attempt(output, owner)
        assert refused.value.exit_code == 7
    assert (output / name).read_text() == text
    (output / name).unlink()
    put_model(output, owner, "2")
    assert read_model(output) == "2"


def test_a_copied_run_leaves_the_merge_of_the_other_and_a_moved_one_replaces_its_own(
    tmp_path, owner
):
    output, other = tmp_path / "merged", Owner("id", tmp_path / "copy")
    (owner.path / "manifest.json").write_text('{"id": "id"}')
    put_model(output, owner, "1")
    shutil.copytree(owner.path, other.path)
    with pytest.raises(ExportError, match=f"is the merge of the run in {owner.path}, which"):
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
    (owner.path / "manifest.json").write_text('{"id": "of a run that came after"}')
    put_model(output, other, "4")
    assert read_model(output) == "4"


@pytest.mark.parametrize("target", ["standing", "empty", "missing"])
def test_an_output_that_is_a_link_stays_one_and_is_written_where_it_points(
    tmp_path, tiny_model, target
):
    adapter = tmp_path / "adapter"
    make_adapter(tiny_model, adapter, {"target_modules": "all-linear"})
    output, disk = tmp_path / "merged", tmp_path / "disk"
    disk.mkdir()
    output.symlink_to(disk / "model")
    owner = Owner("id", tmp_path)
    if target == "empty":
        (disk / "model").mkdir()
    for _ in range(2 if target == "standing" else 1):
        merge(make_merge_plan(adapter, output, verify="none", owner=owner))
    assert output.readlink() == disk / "model"
    assert (disk / "model" / "model.safetensors").exists()
    assert [path.name for path in disk.iterdir()] == ["model"]
    check_output_is_free(output, owner)
    with pytest.raises(ExportError, match="the output exists already"):
        make_merge_plan(adapter, output)


@pytest.mark.parametrize("is_run", [True, False])
def test_killed_between_the_two_renames_the_earlier_merge_is_put_back(
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
    assert f"{output}: put back the earlier merge" in capfd.readouterr().err
    put_model(output, owner, "3")
    assert read_model(output) == "3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "run"]


def test_an_earlier_merge_that_cannot_be_deleted_is_named_and_never_put_back_by_halves(
    tmp_path, owner, capfd, monkeypatch
):
    """As on NFS, where a file that a server still reads stays in its folder."""
    output, aside = tmp_path / "merged", tmp_path / ".merged.replaced"
    put_model(output, owner, "1")

    def refuse(folder: Path) -> None:
        assert folder == aside
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        put_model(output, owner, "2")
        assert read_model(output) == "2"
        warning = f"warning: the earlier merge cannot be deleted: Directory not empty: {aside}"
        assert warning in capfd.readouterr().err
        with pytest.raises(ExportError, match="the earlier merge cannot be deleted"):
            put_model(output, owner, "3")
    assert read_model(output) == "2"
    output.rename(tmp_path / "elsewhere")
    check_output_is_free(output, owner)
    assert not output.exists()
    put_model(output, owner, "3")
    assert read_model(output) == "3"
    assert not aside.exists()
