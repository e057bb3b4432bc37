"""A run changes only files that runs wrote, in a folder that is its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_sft.errors import RecipeError
from lora_sft.processes.output_lock import LOCK_FILE
from lora_sft.recipe import read_recipe
from lora_sft.train.checkpoints.output_folder import check_output_folder
from tests.conftest import make_rows, write_rows

MINE = '{"name": "mine"}\n'
SHORT = {"max_steps": 2, "warmup_steps": 0}
ADAPTER_NAMES = ("adapter_config.json", "tokenizer.json", "README.md")


def check_refused(outcome, name):
    assert outcome.code == 2
    what, where, fix = outcome.stderr.splitlines()[-3:]
    assert "lora-sft did not write" in what
    assert name in what
    assert where.startswith("where: ")
    assert "set another output_dir" in fix


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume", "never"]])
@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "manifest.json",
        "metrics.jsonl",
        "status.json",
        "validation_sample.json",
        LOCK_FILE,
        *(f"adapter/{name}" for name in ADAPTER_NAMES),
        "checkpoints/checkpoint-7/optimizer.pt",
    ],
)
def test_a_file_that_no_run_wrote_is_never_overwritten(
    command, write_recipe, tmp_path, name, option
):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text(MINE)
    shown = "checkpoints/checkpoint-7" if name.startswith("checkpoints") else name
    for _ in range(2):  # the first start must leave nothing that makes the folder look like a run
        check_refused(command("train", write_recipe(), *option), shown)
    assert path.read_text() == MINE


def test_training_data_with_the_name_of_a_run_file_is_never_overwritten(
    command, write_recipe, tmp_path
):
    """In the folder of an earlier run too."""
    rows = tmp_path / "run" / "metrics.jsonl"
    rows.parent.mkdir()
    write_rows(rows, make_rows(48))
    before = rows.read_text()
    recipe = write_recipe(data={"datasets": [{"path": "run/metrics.jsonl"}]})
    for manifest in ("", '{"recipe": {}, "versions": {}}'):
        (tmp_path / "run" / "manifest.json").write_text(manifest)
        outcome = command("train", recipe)
        assert outcome.code == 2
        assert "would overwrite this data file: run/metrics.jsonl" in outcome.stderr
        assert rows.read_text() == before


def test_other_files_in_the_folder_do_not_matter(command, write_recipe, tmp_path):
    """The data may be there too. Without validation rows no sample of them is written."""
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    notes = [run / "notes.txt", run / "adapter" / "notes.txt", run / "validation_sample.json"]
    for path in notes:
        path.write_text(MINE)
        path.chmod(0o600)
    write_rows(run / "rows.jsonl", make_rows(16))
    data = {"datasets": [{"path": "run/rows.jsonl"}], "validation": None}
    outcome = command("train", write_recipe(data=data, train=SHORT))
    assert outcome.code == 0, outcome.stderr
    assert {path.read_text() for path in notes} == {MINE}
    assert {path.stat().st_mode & 0o777 for path in notes} == {0o600}


def test_a_folder_with_only_the_traces_of_failed_starts_is_used(command, write_recipe, tmp_path):
    """One start failed before the manifest was written, one after it."""
    recipe, run = write_recipe(train=SHORT), tmp_path / "run"
    (tmp_path / "train.jsonl").write_text('{"messages": [')
    assert command("train", recipe).code == 3
    assert sorted(path.name for path in run.iterdir()) == [LOCK_FILE, "status.json"]
    assert command("train", write_recipe(train=SHORT)).code == 0
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints")
    again = command("train", recipe, "adapter.r=8")
    assert again.code == 0, again.stderr


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
@pytest.mark.parametrize("place", [".", "base", "base/..", "link"])
def test_the_folder_of_the_base_model_is_no_output_folder(
    command, write_recipe, tmp_path, tiny_model, place, option
):
    base = tmp_path / "models" / "base"
    shutil.copytree(tiny_model, base)
    (tmp_path / "models" / "link").symlink_to(base)
    before = sorted(base.iterdir())
    recipe = write_recipe(
        model={"model_name_or_path": str(base)}, output_dir=str(base.parent / place)
    )
    outcome = command("train", recipe, *option)
    assert outcome.code == 2
    assert "output_dir is, or holds, the folder of the base model" in outcome.stderr
    assert "fix:   set output_dir to a folder of its own" in outcome.stderr
    assert sorted(base.iterdir()) == before
    assert not (base.parent / LOCK_FILE).exists()


@pytest.mark.parametrize("place", ["home/me", "home"])
def test_the_home_folder_is_no_output_folder(command, write_recipe, tmp_path, monkeypatch, place):
    (tmp_path / "home" / "me").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    outcome = command("train", write_recipe(output_dir=str(tmp_path / place)))
    assert outcome.code == 2
    assert "your home folder" in outcome.stderr


def test_the_root_folder_is_no_output_folder(write_recipe):
    """Only the check is called: without it, the command would write into `/`."""
    with pytest.raises(RecipeError) as caught:
        check_output_folder(read_recipe(write_recipe(output_dir="/")), overwrite=False)
    assert "output_dir is, or holds" in caught.value.what


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("rows/train.jsonl", "rows"),
        ("rows/*.jsonl", "rows"),
        ("rows", "rows"),
        ("rows/train.jsonl", "."),
    ],
)
def test_overwrite_is_refused_in_a_folder_with_data(command, write_recipe, tmp_path, path, place):
    folder = tmp_path / "project"
    (folder / "rows").mkdir(parents=True)
    write_rows(folder / "rows" / "train.jsonl", make_rows(16))
    data = {"datasets": [{"path": f"project/{path}"}]}
    recipe = write_recipe(data=data, output_dir=str(folder / place))
    outcome = command("train", recipe, "--overwrite")
    assert outcome.code == 2
    assert "output_dir is, or holds, a folder of data" in outcome.stderr
    assert [each.name for each in folder.rglob("*")] == ["rows", "train.jsonl"]


def test_overwrite_removes_a_run_behind_links(command, write_recipe, tmp_path):
    recipe, run = write_recipe(train=SHORT), tmp_path / "run"
    assert command("train", recipe).code == 0
    for link in (run / "adapter", run / "checkpoints" / "checkpoint-2"):
        disk = tmp_path / link.name
        link.rename(disk)
        link.symlink_to(disk)
    outcome = command("train", recipe, "adapter.r=8", "train.save_steps=1", "--overwrite")
    assert outcome.code == 0, outcome.stderr
    folders = [run / "adapter", *(run / "checkpoints").iterdir()]
    assert {path.name for path in folders} == {"adapter", "checkpoint-1", "checkpoint-2"}
    for folder in folders:
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8


def test_overwrite_leaves_no_old_checkpoint_behind_a_link(command, write_recipe, tmp_path):
    """The new run saves none, so an old one would be the last."""
    recipe, run, disk = write_recipe(train=SHORT), tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    run.mkdir()
    (run / "checkpoints").symlink_to(disk)
    assert command("train", recipe).code == 0
    assert [path.name for path in disk.iterdir()] == ["checkpoint-2"]
    outcome = command("train", recipe, "train.save_strategy=no", "--overwrite")
    assert outcome.code == 0, outcome.stderr
    assert not list(disk.iterdir())
    assert (run / "checkpoints").is_symlink()


def test_overwrite_deletes_no_file_of_the_user(command, write_recipe, tmp_path):
    """Not in the folders of the run, and not behind a link in them."""
    recipe, run = write_recipe(train=SHORT), tmp_path / "run"
    assert command("train", recipe).code == 0
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "optimizer.pt").write_text(MINE)
    notes = [tmp_path / "thesis" / "optimizer.pt"]
    for folder in ("adapter", "adapter/more", "checkpoints", "checkpoints/checkpoint-2"):
        (run / folder).mkdir(exist_ok=True)
        notes.append(run / folder / "notes.txt")
        notes[-1].write_text(MINE)
    (run / "checkpoints" / "checkpoint-2" / "global_step2").symlink_to(tmp_path / "thesis")
    manifest = run / "checkpoints" / "checkpoint-2" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"]["../../../thesis/optimizer.pt"] = {"bytes": 1, "sha256": ""}
    manifest.write_text(json.dumps(document))
    outcome = command("train", recipe, "train.save_strategy=no", "--overwrite")
    assert outcome.code == 0, outcome.stderr
    assert {path.read_text() for path in notes} == {MINE}
    left = [path.name for path in (run / "checkpoints").rglob("*") if not path.is_dir()]
    assert left == ["notes.txt", "notes.txt"]


def test_overwrite_that_cannot_delete_a_file_is_an_error(
    command, write_recipe, tmp_path, monkeypatch
):
    recipe, run = write_recipe(train=SHORT), tmp_path / "run"
    assert command("train", recipe).code == 0
    unlink, kept = Path.unlink, run / "adapter" / "adapter_model.safetensors"

    def refuse(path, missing_ok=False):
        if path == kept:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    outcome = command("train", recipe, "train.seed=7", "--overwrite")
    assert outcome.code == 2
    assert f"--overwrite cannot delete a file of the old run: {kept}" in outcome.stderr
