"""A second start of a recipe loses no work; another recipe is refused in the same directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from lora_sft.errors import RecipeError
from lora_sft.recipe import read_recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.resume import find_differences, find_starting_point
from lora_sft.train.zero import check_can_convert
from tests.commands import read_metrics
from tests.tiny import make_tiny_llama


def hash_files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


OLD = {"model": {"m": "a"}, "train": {"max_steps": 10, "logging_steps": 1, "seed": 1}}


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"logging_steps": 5, "report_to": "tensorboard"}, []),
        ({"max_steps": 20}, []),
        ({"max_steps": 5}, ["train.max_steps"]),
        ({"seed": 2}, ["train.seed"]),
    ],
)
def test_only_logging_fields_and_a_longer_run_may_differ(change, differences):
    new = {**OLD, "train": {**OLD["train"], **change}}
    assert find_differences(OLD, new) == differences


def test_a_finished_run_is_not_changed(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    before = hash_files(tmp_path / "run")
    again = command("train", recipe)
    assert again.code == 0
    assert "this run is finished (step 4); nothing to do" in again.stderr
    assert hash_files(tmp_path / "run") == before


def test_another_recipe_is_refused_with_every_differing_field(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    before = hash_files(tmp_path / "run")
    other = command("train", write_recipe(), "adapter.r=8", "train.learning_rate=5e-4")
    assert other.code == 2
    assert "adapter.r: 4 -> 8" in other.stderr
    assert "train.learning_rate: 0.001 -> 0.0005" in other.stderr
    assert hash_files(tmp_path / "run") == before


def test_overwrite_removes_the_run_but_no_other_file_in_the_folder(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert command("train", recipe, "train.seed=7", "--overwrite").code == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 7


def test_a_resumed_run_gives_the_same_losses_and_adapter(command, write_recipe, tmp_path):
    """Eight steps in one start, or four steps and four more: equal losses and equal bytes."""
    dropout = {"adapter": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}}
    schedule = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    straight = write_recipe(
        "straight.yaml",
        **dropout,
        train={"max_steps": 8, "save_steps": 4, **schedule},
        output_dir=str(tmp_path / "straight"),
    )
    halves = write_recipe(
        "halves.yaml",
        **dropout,
        train={"max_steps": 4, "save_steps": 4, **schedule},
        output_dir=str(tmp_path / "halves"),
    )
    assert command("train", straight).code == 0
    assert command("train", halves).code == 0
    assert command("train", halves, "train.max_steps=8").code == 0
    for key in ("loss", "grad_norm"):
        expected = read_metrics(tmp_path / "straight", key)
        assert read_metrics(tmp_path / "halves", key) == expected
        assert list(expected) == list(range(1, 9))
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_run_killed_after_its_last_checkpoint_trains_no_extra_step(
    command, write_recipe, tmp_path
):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    trained = adapter.read_bytes()
    (tmp_path / "run" / "status.json").unlink()
    adapter.unlink()
    again = command("train", recipe)
    assert again.code == 0
    assert "there is nothing left to train" in again.stderr
    assert adapter.read_bytes() == trained
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4]


def test_an_incomplete_checkpoint_is_not_used(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    losses = read_metrics(tmp_path / "run", "loss")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # as if killed while it wrote
    (tmp_path / "run" / "status.json").unlink()
    (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
    again = command("train", recipe)
    assert again.code == 0
    assert "continuing from" in again.stderr
    assert "checkpoint-2" in again.stderr
    assert read_metrics(tmp_path / "run", "loss") == losses


def test_a_folder_with_an_adapter_of_another_program_is_refused(command, write_recipe, tmp_path):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    outcome = command("train", write_recipe())
    assert outcome.code == 2
    assert "that lora-sft did not write" in outcome.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").read_text() == "{}"


def test_a_checkpoint_of_another_run_is_refused(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    other = command(
        "train",
        write_recipe(),
        "train.learning_rate=5e-4",
        f"output_dir={tmp_path / 'other'}",
        "--resume",
        checkpoint,
    )
    assert other.code == 2
    assert "train.learning_rate" in other.stderr
    assert not (tmp_path / "other" / "adapter").exists()


def test_a_run_does_not_continue_with_changed_data(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    rows = (tmp_path / "train.jsonl").read_text().replace("Oslo", "Bonn")
    (tmp_path / "train.jsonl").write_text(rows)
    before = hash_files(tmp_path / "run")
    outcome = command("train", recipe, "train.max_steps=8")
    assert outcome.code == 2
    assert "the training rows are not those of the checkpoint" in outcome.stderr
    assert hash_files(tmp_path / "run") == before  # the run is still finished
    assert "nothing to do" in command("train", recipe).stderr


def test_a_difference_is_found_in_a_new_output_directory_too(command, write_recipe, tmp_path):
    """The start is compared with the manifest of the checkpoint's run: the new run has none yet."""
    recipe = write_recipe(train={"global_batch_size": None, "gradient_accumulation_steps": 2})
    assert command("train", recipe).code == 0
    again = ["train", recipe, f"output_dir={tmp_path / 'new'}", "train.max_steps=8", "--resume"]
    again.append(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    manifest = tmp_path / "run" / "manifest.json"
    document = json.loads(manifest.read_text())
    packed = {"on": True, "rows": 3}
    for section, field, value, what in (
        ("data", "fingerprint", "another", "the training rows are not those of the checkpoint"),
        ("plan", "global_batch_size", 9, "the checkpoint was trained with 9 rows per step"),
        ("plan", "packing", packed, "the checkpoint was trained on 3 packed rows"),
    ):
        changed = {**document, section: {**document[section], field: value}}
        manifest.write_text(json.dumps(changed))
        outcome = command(*again)
        assert outcome.code == 2
        assert what in outcome.stderr
    assert not (tmp_path / "new" / "manifest.json").exists()
    manifest.write_text(json.dumps(document))
    outcome = command(*again)
    assert outcome.code == 0, outcome.stderr
    assert list(read_metrics(tmp_path / "new", "loss")) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_does_not_continue_with_another_base_model_at_the_same_path(
    command, write_recipe, tmp_path, tiny_model
):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    recipe = write_recipe(model={"model_name_or_path": str(base)}, train={"max_steps": 2})
    assert command("train", recipe).code == 0
    before = hash_files(tmp_path / "run")
    make_tiny_llama(base, seed=1)
    for place in ("run", "new"):
        outcome = command(
            "train",
            recipe,
            "train.max_steps=4",
            f"output_dir={tmp_path / place}",
            *(["--resume", tmp_path / "run" / "checkpoints" / "checkpoint-2"] * (place == "new")),
        )
        assert outcome.code == 2
        assert "the base model is not that of the checkpoint" in outcome.stderr
        assert "model.model_name_or_path" in outcome.stderr
    assert hash_files(tmp_path / "run").keys() == before.keys()


@pytest.mark.parametrize("linked", ["checkpoints", "checkpoints/checkpoint-4"])
def test_the_manifest_is_found_if_checkpoints_are_links(command, write_recipe, tmp_path, linked):
    """One checkpoint or the whole folder may be a link, for example to a larger disk."""
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    link, large_disk = tmp_path / "run" / linked, tmp_path / "large" / "disk"
    large_disk.mkdir(parents=True)
    link.rename(large_disk / link.name)
    link.symlink_to(large_disk / link.name)
    start = find_starting_point(
        RunDirectory(tmp_path / "run"), read_recipe(recipe, ["train.max_steps=8"]), "auto", False
    )
    assert start.checkpoint == tmp_path / "run" / "checkpoints" / "checkpoint-4"
    assert start.get_recorded("data")["fingerprint"]


def test_a_status_file_that_is_not_text_is_ignored(tmp_path):
    (tmp_path / "status.json").write_bytes(b"\xff\xfe\x00")
    assert RunDirectory(tmp_path).read_status() is None
    assert not RunDirectory(tmp_path).is_finished


def test_overwrite_removes_nothing_if_the_new_run_cannot_start(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    (tmp_path / "train.jsonl").write_text('{"messages": [')
    assert command("train", recipe, "--overwrite").code == 3
    assert adapter.read_bytes() == before


def test_a_run_never_overwrites_its_own_recipe(command, write_recipe, tmp_path):
    recipe = write_recipe(output_dir=str(tmp_path))
    text = recipe.read_text()
    outcome = command("train", recipe)
    assert outcome.code == 2
    assert "would overwrite this recipe with its resolved recipe" in outcome.stderr
    assert recipe.read_text() == text


def test_a_finished_run_without_checkpoints_is_not_trained_again_from_step_0(
    command, write_recipe, tmp_path
):
    recipe = write_recipe(train={"save_strategy": "no"})
    assert command("train", recipe).code == 0
    adapter = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    outcome = command("train", recipe, "train.max_steps=8")
    assert outcome.code == 2
    assert "no complete checkpoint to continue from" in outcome.stderr
    assert adapter.read_bytes() == before


def test_a_failed_export_is_repeated_without_training(command, write_recipe, tmp_path):
    """The merge failed after the last step of training."""
    merged = tmp_path / "merged"
    recipe = write_recipe(export={"merge": str(merged)})
    assert command("train", recipe).code == 0
    assert (merged / "merge_report.json").exists()
    for path in merged.iterdir():
        path.unlink()
    status = tmp_path / "run" / "status.json"
    status.write_text(status.read_text().replace('"exit_code": 0', '"exit_code": 7'))
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert "there is nothing left to train" in again.stderr
    assert (merged / "merge_report.json").exists()


def test_a_run_replaces_its_own_earlier_merge(command, write_recipe, tmp_path):
    """It does so after a stop, if it becomes longer, and with `--overwrite`.

    A run in another folder, a copy of the run, and a file of the user are refused.
    """
    merged, status = tmp_path / "merged", tmp_path / "run" / "status.json"
    recipe = write_recipe(export={"merge": str(merged)})
    assert command("train", recipe).code == 0
    first = hash_files(merged)
    status.write_text(json.dumps({"exit_code": 75, "reason": "stopped", "step": 4}))
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert hash_files(merged)["model.safetensors"] == first["model.safetensors"]
    longer = command("train", recipe, "train.max_steps=6")
    assert longer.code == 0, longer.stderr
    second = hash_files(merged)
    assert second["model.safetensors"] != first["model.safetensors"]
    copy = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    arguments = ("train.max_steps=6", f"output_dir={tmp_path / 'other'}")
    for resume in ((), ("--resume", copy)):
        other = command("train", recipe, *arguments, *resume)
        assert other.code == 7
        assert "this run did not write it" in other.stderr
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copied = command("train", recipe, "train.max_steps=8", f"output_dir={tmp_path / 'copy'}")
    assert copied.code == 7
    assert f"the run in {tmp_path / 'run'} wrote it" in copied.stderr
    (merged / "model.gguf").write_text("mine")
    refused = command("train", recipe, "train.max_steps=8")
    assert refused.code == 7
    assert "the merge did not write model.gguf" in refused.stderr
    (merged / "model.gguf").unlink()
    assert hash_files(merged) == second
    anew = command("train", recipe, "--overwrite")
    assert anew.code == 0, anew.stderr
    assert hash_files(merged)["model.safetensors"] == first["model.safetensors"]
    assert not list(tmp_path.glob(".merged*"))


def test_a_run_killed_during_its_first_save_starts_at_step_0(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    losses = read_metrics(tmp_path / "run", "loss")
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "manifest.json").unlink()
    (tmp_path / "run" / "status.json").unlink()
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert "no checkpoint was finished; starting at step 0" in again.stderr
    assert read_metrics(tmp_path / "run", "loss") == losses


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    command, write_recipe, tmp_path
):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    losses = read_metrics(tmp_path / "run", "loss")
    (tmp_path / "run" / "status.json").unlink()
    file = tmp_path / "run" / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    again = command("train", recipe)
    assert again.code == 0, again.stderr
    assert "checkpoint-4 is not used: adapter_model.safetensors has changed" in again.stderr
    assert read_metrics(tmp_path / "run", "loss") == losses


def test_another_number_of_rows_per_step_is_refused_with_a_fix(command, write_recipe, tmp_path):
    """Two processes wrote the checkpoint. One process with equal accumulation halves each step."""
    half = write_recipe(train={"global_batch_size": None, "gradient_accumulation_steps": 2})
    assert command("train", half, "train.max_steps=2").code == 0
    manifest = tmp_path / "run" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["plan"]["global_batch_size"] = 8
    manifest.write_text(json.dumps(document))
    refused = command("train", half)
    assert refused.code == 2
    assert (
        "the checkpoint was trained with 8 rows per step, but this number of processes "
        "gives 4 rows per step"
    ) in refused.stderr
    assert "fix:   write train.global_batch_size: 8 instead of" in refused.stderr
    assert command("train", write_recipe(train={"global_batch_size": 4})).code == 2
    fixed = command("train", write_recipe(train={"global_batch_size": 8}))
    assert fixed.code == 0, fixed.stderr
    assert "continuing from" in fixed.stderr
    assert list(read_metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4]


def test_8_bit_optimizer_states_are_refused_with_another_number_of_processes(write_recipe):
    recipe = write_recipe(train={"deepspeed": "zero2"})
    check_can_convert(read_recipe(recipe), 2)
    with pytest.raises(RecipeError) as caught:
        check_can_convert(read_recipe(recipe, ["train.optim=paged_adamw_8bit"]), 2)
    assert "2 processes cannot load the optimizer states" in caught.value.what
    assert "DeepSpeed cannot convert those of paged_adamw_8bit" in caught.value.what
    assert "train.optim" in caught.value.where
