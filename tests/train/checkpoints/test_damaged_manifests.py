"""A damaged manifest never ends in a crash, and never makes a start give up good checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_sft.file_names import MANIFEST_FILE
from tests.commands import read_metrics
from tests.conftest import write_rows


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory, tiny_model):
    """Return a recipe and its run, which was killed after step 4 of 5 and has two checkpoints."""
    from lora_sft.cli.app import run
    from tests.conftest import make_rows

    folder = tmp_path_factory.mktemp("killed")
    write_rows(folder / "train.jsonl", make_rows(16))
    recipe = {
        "model": {"model_name_or_path": str(tiny_model), "dtype": "float32"},
        "adapter": {"r": 4, "lora_alpha": 8},
        "data": {"datasets": [{"path": "train.jsonl"}], "max_length": 128, "packing": False},
        "train": {
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "global_batch_size": 4,
            "logging_steps": 1,
            "save_steps": 2,
            "activation_checkpointing": False,
        },
        "output_dir": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert run(["train", str(folder / "recipe.yaml")]) == 0
    (folder / "run" / "status.json").unlink()
    shutil.rmtree(folder / "run" / "adapter")
    return folder


@pytest.fixture
def run(killed_run, tmp_path):
    return Path(shutil.copytree(killed_run / "run", tmp_path / "run"))


@pytest.fixture
def train(command, killed_run, run):
    """Return a function that continues the copied run up to step 5, with these options."""
    given = ("train", killed_run / "recipe.yaml", f"output_dir={run}", "train.max_steps=5")
    return lambda *options: command(*given, *options)


def read_weights(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*.safetensors")}


def test_the_checkpoint_before_a_damaged_one_is_used(train, run):
    (run / "checkpoints" / "checkpoint-4" / MANIFEST_FILE).write_bytes(b"\xff\xfe\x00\x80")
    outcome = train()
    assert outcome.code == 0, outcome.stderr
    assert "checkpoint-4 is not used: manifest.json is damaged" in outcome.stderr
    assert f"continuing from {run / 'checkpoints' / 'checkpoint-2'}" in outcome.stderr
    assert list(read_metrics(run, "loss")) == [1, 2, 3, 4, 5]


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_not_trained_anew(train, run):
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / MANIFEST_FILE).write_text("{")
    before = read_weights(run)
    outcome = train()
    assert outcome.code == 2
    what, where, fix = outcome.stderr.splitlines()[-3:]
    assert "checkpoint-2: manifest.json is damaged; checkpoint-4: manifest.json" in what
    assert where == f"where: {run}  output_dir"
    assert "restore a checkpoint from a copy" in fix
    assert read_weights(run) == before


def change(run: Path, **sections: object) -> str:
    document = json.loads((run / MANIFEST_FILE).read_text())
    return json.dumps({**document, **sections})


DAMAGES = {
    "it is gone": lambda run: None,
    "it is cut off": lambda run: "{",
    "it is not text": lambda run: b"\xff\xfe\x00",
    "it is a list": lambda run: "[]",
    "it has no recipe": lambda run: json.dumps({"versions": {}}),
    "its recipe is text": lambda run: change(run, recipe="mine"),
    "a section of its recipe is a list": lambda run: change(run, recipe={"train": []}),
    "its plan is a list": lambda run: change(run, plan=[1]),
    "its plan has no rows": lambda run: change(run, plan={"packing": {"on": True}}),
    "its data are text": lambda run: change(run, data="rows"),
    "its date is a number": lambda run: change(run, data={"template_date": 1}),
    "its id is a list": lambda run: change(run, id=[]),
    "its versions are a list": lambda run: change(run, versions=["torch"]),
    "its base is text": lambda run: change(run, base="mine"),
    "the config of its base is text": lambda run: change(run, base={"config": "mine"}),
    "its tokenizer's hash is a number": lambda run: change(run, tokenizer={"sha256": 1}),
    "the hash of its template is a number": lambda run: change(run, data={"template_sha256": 1}),
    "the hashes of its splits are a list": lambda run: change(run, data={"fingerprints": [1]}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_with_a_damaged_manifest_names_the_way_to_continue(train, run, damage):
    content = DAMAGES[damage](run)
    if content is None:
        (run / MANIFEST_FILE).unlink()
    elif isinstance(content, bytes):
        (run / MANIFEST_FILE).write_bytes(content)
    else:
        (run / MANIFEST_FILE).write_text(content)
    before = read_weights(run)
    outcome = train()
    assert outcome.code == 2
    what, where, fix = outcome.stderr.splitlines()[-3:]
    assert "manifest.json of this run is missing or damaged" in what
    assert where == f"where: {run / MANIFEST_FILE}"
    assert f"--resume {run / 'checkpoints' / 'checkpoint-4'}" in fix
    assert read_weights(run) == before


def test_a_run_with_a_damaged_manifest_continues_from_a_named_checkpoint(train, run):
    """It writes a good manifest. Its recipe is still compared, with that in `recipe.yaml`."""
    (run / MANIFEST_FILE).write_text("{")
    named = ("--resume", run / "checkpoints" / "checkpoint-4")
    other = train("train.learning_rate=1e-2", *named)
    assert other.code == 2
    assert "train.learning_rate: 0.001 -> 0.01" in other.stderr
    outcome = train(*named)
    assert outcome.code == 0, outcome.stderr
    assert "only the recipe and a sample of the base model's weights are compared" in outcome.stderr
    assert list(read_metrics(run, "loss")) == [1, 2, 3, 4, 5]
    assert train().code == 0


def test_a_run_without_any_record_continues_from_a_named_checkpoint(train, run):
    (run / MANIFEST_FILE).write_text("{")
    (run / "recipe.yaml").write_text("train: [")
    (run / "checkpoints" / "checkpoint-4" / MANIFEST_FILE).write_text("{")
    outcome = train("--resume", run / "checkpoints" / "checkpoint-2")
    assert outcome.code == 0, outcome.stderr
    assert list(read_metrics(run, "loss")) == [1, 2, 3, 4, 5]


def test_a_damaged_run_can_be_overwritten(train, run):
    for manifest in run.rglob(MANIFEST_FILE):
        manifest.write_text("{")
    outcome = train("--overwrite", "train.save_strategy=no")
    assert outcome.code == 0, outcome.stderr
    assert not list((run / "checkpoints").iterdir())
