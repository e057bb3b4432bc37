"""DeepSpeed's states are pickles: they are loaded only if this user signed them, or trusts them."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest

from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.resume import find_best_checkpoint
from lora_sft.train.checkpoints.sealing import find_damage, read_manifest, seal
from lora_sft.train.checkpoints.signing import (
    find_doubt,
    identify_key,
    prepare_key,
    warn_of_other_keys,
)
from lora_sft.train.zero import convert_to_universal
from tests.commands import read_metrics

STATES = "global_step4/mp_rank_00_model_states.pt"


@pytest.fixture
def other_key(tmp_path, monkeypatch):
    """Return a function after which another user reads the checkpoint."""

    def change() -> Path:
        monkeypatch.setenv("LORA_SFT_KEY_FILE", str(tmp_path / "other" / "key"))
        return tmp_path / "other" / "key"

    return change


@pytest.fixture
def checkpoint(tmp_path):
    """Return a sealed checkpoint with a file of DeepSpeed."""
    folder = tmp_path / "checkpoint-4"
    (folder / STATES).parent.mkdir(parents=True)
    (folder / STATES).write_bytes(b"states")
    (folder / "latest").write_text("global_step4")
    seal(folder, world_size=1)
    return folder


def find_doubt_of(checkpoint: Path) -> str:
    return find_doubt(checkpoint, read_manifest(checkpoint) or {})


def make_manifest_again(checkpoint: Path, **changes: object) -> None:
    """Hash the files of a checkpoint as they are now, as an attacker would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text()) | changes
    manifest["files"] = {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in checkpoint.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def write_harmful_pickle(path: Path, marker: Path) -> None:
    """Write a file of torch's format whose loading makes the file `marker`."""

    class Harm:
        def __reduce__(self):
            return (Path.touch, (marker,))

    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": Harm()}, protocol=2))
        file.writestr("archive/version", "3\n")


def test_own_states_are_known_and_changed_ones_are_not(checkpoint):
    assert find_doubt_of(checkpoint) == ""
    (checkpoint / STATES).write_bytes(b"forged")
    assert "has changed" in find_damage(checkpoint)
    make_manifest_again(checkpoint)
    assert find_damage(checkpoint) == ""
    assert "did not sign" in find_doubt_of(checkpoint)


def test_states_of_another_user_are_not_known(checkpoint, other_key):
    key = other_key()
    assert "cannot be read" in find_doubt_of(checkpoint)
    prepare_key()
    assert f"the key in {key} did not sign" in find_doubt_of(checkpoint)


@pytest.mark.parametrize("signature", [None, "", 7, "0" * 64])
def test_a_missing_or_wrong_signature_is_noticed(checkpoint, signature):
    make_manifest_again(checkpoint, signature=signature)
    assert find_doubt_of(checkpoint)
    manifest = read_manifest(checkpoint)
    del manifest["signature"]
    assert find_doubt(checkpoint, manifest) == "the manifest has no signature"


@pytest.mark.parametrize("name", ["global_step4/more.pt", "global_step9/x.pt"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_was_added_to_the_states_is_noticed(checkpoint, name, is_link, tmp_path):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    if is_link:
        (checkpoint / name).symlink_to(tmp_path, target_is_directory=True)
    else:
        (checkpoint / name).write_bytes(b"")
    assert find_doubt_of(checkpoint) == f"the manifest does not list {name}"


def test_a_checkpoint_without_states_needs_no_signature(tmp_path, other_key):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    other_key()
    seal(tmp_path, world_size=1)
    assert set(read_manifest(tmp_path)) == {"world_size", "files"}
    assert find_doubt_of(tmp_path) == ""


def test_a_best_checkpoint_of_another_author_is_ignored_unless_it_is_trusted(tmp_path, other_key):
    run = RunDirectory(tmp_path)
    folder = run.checkpoints / "checkpoint-4"
    (folder / STATES).parent.mkdir(parents=True)
    (folder / STATES).write_bytes(b"states")
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(folder)}))
    seal(folder, world_size=1)
    assert find_best_checkpoint(run, folder) == folder
    other_key()
    assert find_best_checkpoint(run, folder) is None
    assert find_best_checkpoint(run, folder, trust_checkpoint=True) == folder


def test_converted_states_of_an_earlier_start_are_deleted_and_never_followed(checkpoint, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").touch()
    (checkpoint / "global_step4_universal").symlink_to(mine)
    assert find_doubt_of(checkpoint) == ""  # they are written again before they are loaded
    with pytest.raises(Exception):  # noqa: B017, these states are not DeepSpeed's
        convert_to_universal(checkpoint)
    assert [path.name for path in mine.iterdir()] == ["file"]


def add_states(run: Path, marker: Path) -> Path:
    """Make the last checkpoint of a plain run look like one of DeepSpeed, with harmful states."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["recipe"]["train"]["deepspeed"] = "zero1"
    (run / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = run / "checkpoints" / "checkpoint-4"
    (checkpoint / STATES).parent.mkdir()
    write_harmful_pickle(checkpoint / STATES, marker)
    (checkpoint / "latest").write_text("global_step4")
    make_manifest_again(checkpoint)
    return checkpoint


def test_a_run_with_states_of_another_author_is_refused(
    command, write_recipe, tmp_path, monkeypatch
):
    recipe, marker = write_recipe(), tmp_path / "harm"
    assert command("train", recipe).code == 0
    checkpoint = add_states(tmp_path / "run", marker)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    longer = ("train", recipe, "train.max_steps=5", "train.deepspeed=zero1")
    elsewhere = (f"output_dir={tmp_path / 'new'}", "--resume", checkpoint)
    for arguments in (longer, (*longer, *elsewhere)):
        refused = command(*arguments)
        assert refused.code == 6, refused.stderr
        assert "nothing shows that you wrote them: the manifest has no signature" in refused.stderr
        assert f"where: {checkpoint}" in refused.stderr
        assert "fix:   if you trust their author, add --trust-checkpoint" in refused.stderr
        assert not marker.exists()


def test_the_option_and_the_key_let_a_run_continue(command, write_recipe, tmp_path, other_key):
    """The recipe has no `train.deepspeed`, so that the test is fast; the check is the same."""
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    (checkpoint / STATES).parent.mkdir()
    (checkpoint / STATES).write_bytes(b"states")
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint, world_size=1)
    elsewhere = (f"output_dir={tmp_path / 'own'}", "--resume", checkpoint)
    own = command("train", recipe, "train.max_steps=5", *elsewhere)
    assert own.code == 0, own.stderr
    other_key()
    assert command("train", recipe, "train.max_steps=6").code == 6
    trusted = command("train", recipe, "train.max_steps=6", "--trust-checkpoint")
    assert trusted.code == 0, trusted.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4, 5, 6]


def test_no_other_file_of_a_checkpoint_runs_code(command, write_recipe, tmp_path):
    recipe, marker = write_recipe(), tmp_path / "harm"
    assert command("train", recipe).code == 0
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin"):
        run = tmp_path / name
        shutil.copytree(tmp_path / "run", run)
        checkpoint = run / "checkpoints" / "checkpoint-4"
        if name == "adapter_model.bin":
            (checkpoint / "adapter_model.safetensors").unlink()
        write_harmful_pickle(checkpoint / name, marker)
        make_manifest_again(checkpoint)
        outcome = command("train", recipe, "train.max_steps=5", f"output_dir={run}")
        assert outcome.code == 6, outcome.stderr
        assert "holds more than tensors and numbers" in outcome.stderr
        assert f"where: {checkpoint}" in outcome.stderr
        assert not marker.exists()


def test_the_beginning_of_a_run_says_where_the_key_is_or_that_there_is_none(
    capsys, monkeypatch, tmp_path
):
    prepare_key()
    assert "signed with the key" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("LORA_SFT_KEY_FILE", str(blocked / "key"))
    prepare_key()
    said = capsys.readouterr().err
    assert "warning: DeepSpeed's states are not signed" in said
    assert str(blocked) in said
    assert "Continuing this run will need --trust-checkpoint" in said


def test_a_process_with_another_key_is_named(capsys, other_key):
    prepare_key()
    first = identify_key()
    warn_of_other_keys({0: first, 1: first})
    assert "warning" not in capsys.readouterr().err
    other_key()
    assert identify_key() == ""
    warn_of_other_keys({0: first, 1: first, 2: identify_key()})
    assert "warning: process 2 does not have the key of process 0" in capsys.readouterr().err
    warn_of_other_keys({0: "", 1: ""})  # `prepare_key` has said it
    assert capsys.readouterr().err == ""
