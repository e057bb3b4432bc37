"""Files of a base model are copied for publication, but no link out of its folder is followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_sft.model_files.base_files import BaseFiles

PRIVATE = "PRIVATE TEXT"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Return a private file outside of the base model's folder, which is valid JSON too."""
    path = tmp_path / "home" / "private.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"token": PRIVATE}))
    return path


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def find_private_text(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if PRIVATE.encode() in path.read_bytes()]


def test_every_copied_file_is_checked(base, private, tmp_path, capfd):
    """The config has `auto_map`, so that Python files are copied too."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {}}))
    names = ["LICENSE", "LICENCE.txt", "NOTICE", "USE_POLICY.md", "tokenizer.model", "code.py"]
    for name in names:
        (base / name).symlink_to(private)
    (base / "text").write_text("free for all")
    (base / "LICENSE-2").symlink_to("text")
    out = tmp_path / "out"
    out.mkdir()
    assert BaseFiles(base).copy_to(out) == ["LICENSE-2"]
    assert (out / "LICENSE-2").read_text() == "free for all"
    said = capfd.readouterr().err
    for name in names:
        assert f"{base / name} is not used: it is a link to a file elsewhere" in said


def test_a_linked_card_or_config_is_not_read(base, private):
    card = private.with_name("card.md")
    card.write_text("---\nlicense: private\n---\n")
    (base / "README.md").symlink_to(card)
    (base / "generation_config.json").unlink(missing_ok=True)
    (base / "generation_config.json").symlink_to(private)
    assert BaseFiles(base).read_licence() == {}
    assert BaseFiles(base).read_json("generation_config.json") == {}


def test_a_cached_model_of_the_hub_keeps_its_licence(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abcd").write_text("free for all")
    (snapshot / "LICENSE").symlink_to("../../blobs/abcd")
    assert BaseFiles(snapshot).copy_to(tmp_path) == ["LICENSE"]
    assert (tmp_path / "LICENSE").read_text() == "free for all"


def test_no_export_has_the_text_of_a_linked_private_file(
    command, write_recipe, base, private, tmp_path
):
    (base / "LICENSE").symlink_to(private)
    (base / "generation_config.json").unlink(missing_ok=True)
    (base / "generation_config.json").symlink_to("../home/private.json")
    recipe = write_recipe(
        model={"model_name_or_path": str(base)},
        data={"validation": None},
        train={"max_steps": 1, "warmup_steps": 0},
    )
    trained = command("train", recipe)
    assert trained.code == 0, trained.stderr
    assert f"{base / 'LICENSE'} is not used" in trained.stderr
    merged = command("merge", tmp_path / "run", tmp_path / "merged", "--verify", "none")
    assert merged.code == 0, merged.stderr
    assert find_private_text(tmp_path / "run", tmp_path / "merged") == []


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "vocab.json"])
def test_a_tokenizer_with_a_link_to_a_private_file_is_refused(
    command, write_recipe, base, private, name
):
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(private)
    outcome = command("train", write_recipe(model={"model_name_or_path": str(base)}))
    assert outcome.code == 4
    assert f"is a link to a file outside of its folder ({private})" in outcome.stderr
    assert f"where: {base / name}" in outcome.stderr
    assert "replace the link by a copy of the file" in outcome.stderr
