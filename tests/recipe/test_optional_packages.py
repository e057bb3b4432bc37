"""A recipe that needs a package which is not installed is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_sft.errors import CapabilityError
from lora_sft.recipe import optional_packages, read_recipe
from lora_sft.recipe.optional_packages import NEEDS, Package, check_packages, list_needs

# The optimizers of torch and transformers themselves.
BUILT_IN = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
LIBRARY_FIELDS = Path(optional_packages.__file__).with_name("library_fields.json")


def list_optimizers() -> list[str]:
    return json.loads(LIBRARY_FIELDS.read_text())["SFTConfig"]["optim"]["choices"]


def test_every_optimizer_is_built_in_or_names_its_package():
    names = set(list_optimizers())
    assert len(names) > 35
    without = {name for name in names if not list_needs("train.optim", name)}
    assert without == BUILT_IN


def test_every_tracker_names_its_package():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = set(INTEGRATION_TO_CALLBACK) - {"kubeflow"}  # it only needs a server
    assert len(names) > 10
    assert all(list_needs("train.report_to", name) for name in names)


@pytest.mark.parametrize(
    ("settings", "package", "fix"),
    [
        ("train.optim=schedule_free_adamw", "schedulefree", "pip install 'schedulefree>=1.2.6'"),
        ("train.optim=galore_adamw_layerwise", "galore-torch", "pip install galore-torch"),
        ("train.optim=apollo_adamw", "apollo-torch", "pip install apollo-torch"),
        ("train.optim=adalomo", "lomo-optim", "pip install lomo-optim"),
        ("train.optim=stable_adamw", "torch-optimi", "pip install torch-optimi"),
        ("train.optim=adamw_torch_4bit", "torchao", "pip install 'torchao>=0.15.0'"),
        ("train.optim=paged_lion_8bit", "bitsandbytes", "pip install 'lora-sft[qlora]'"),
        ("train.use_liger_kernel=true", "liger-kernel", "pip install 'lora-sft[liger]'"),
        ("train.report_to=wandb", "wandb", "pip install 'lora-sft[track]'"),
        ("train.report_to=mlflow", "mlflow", "pip install mlflow"),
        ("train.deepspeed=zero2", "deepspeed", "DS_BUILD_OPS=0 pip install 'lora-sft[deepspeed]'"),
        ("quantization=nf4", "bitsandbytes", "pip install 'lora-sft[qlora]'"),
        (
            "model.attn_implementation=flash_attention_2",
            "flash-attn",
            "pip install flash-attn --no-build-isolation",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_field_and_the_command(
    write_recipe, monkeypatch, settings, package, fix
):
    monkeypatch.setattr(optional_packages, "_is_importable", lambda module: False)
    recipe = read_recipe(write_recipe(), [settings])
    with pytest.raises(CapabilityError) as caught:
        check_packages(recipe)
    field, _, value = settings.partition("=")
    assert caught.value.what.endswith(f"needs {package}, which is not installed")
    assert caught.value.what.startswith((f"{field}: {value}", field))
    assert field in caught.value.where
    assert caught.value.fix == fix


def test_all_missing_packages_are_shown_at_once(write_recipe, monkeypatch):
    monkeypatch.setattr(optional_packages, "_is_importable", lambda module: False)
    train = {"optim": "grokadamw", "report_to": ["wandb", "clearml"]}
    with pytest.raises(CapabilityError) as caught:
        check_packages(read_recipe(write_recipe(train=train)))
    assert [fault.fix for fault in caught.value.faults] == [
        "pip install grokadamw",
        "pip install 'lora-sft[track]'",
        "pip install clearml",
    ]


def test_a_recipe_without_optional_features_needs_nothing(write_recipe, monkeypatch):
    monkeypatch.setattr(optional_packages, "_is_importable", lambda module: False)
    recipe = write_recipe(train={"optim": "adamw_torch", "report_to": "none"})
    check_packages(read_recipe(recipe, ["train.use_liger_kernel=false"]))


def test_an_old_version_is_refused_and_a_new_one_is_not(monkeypatch):
    package = Package("schedulefree", "json", minimum="1.4.0")
    monkeypatch.setattr(optional_packages, "_find_version", lambda name: "1.3.9")
    assert "1.3.9 is installed, and 1.4.0 is needed" in package.find_problem()
    monkeypatch.setattr(optional_packages, "_find_version", lambda name: "1.10.0.post1")
    assert package.find_problem() == ""


def test_one_of_several_packages_is_enough(write_recipe, monkeypatch):
    installed = {"tensorboardX"}
    monkeypatch.setattr(optional_packages, "_is_importable", installed.__contains__)
    check_packages(read_recipe(write_recipe(train={"report_to": "tensorboard"})))


def test_a_folder_without_code_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / "clearml").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert Package("clearml").find_problem() == "is not installed"


def test_the_command_ends_before_it_reads_the_model(command, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(optional_packages, "_is_importable", lambda module: False)
    recipe = write_recipe(model={"model_name_or_path": str(tmp_path)}, train={"optim": "lomo"})
    outcome = command("train", recipe)
    assert outcome.code == 5, outcome.stderr
    what, where, fix = outcome.stderr.strip().splitlines()
    assert what == "error: train.optim: lomo needs lomo-optim, which is not installed"
    line = 1 + next(
        index for index, text in enumerate(recipe.read_text().splitlines()) if '"optim"' in text
    )
    assert where == f"where: {recipe}:{line}  train.optim"
    assert fix == "fix:   pip install lomo-optim"
    assert not (tmp_path / "run").exists()


def test_a_package_that_breaks_while_it_is_imported_is_an_error_of_three_lines(
    command, write_recipe, monkeypatch
):
    from lora_sft.train.trl.trainer import LoraTrainer

    def create_optimizer(self, *args):
        raise ImportError("undefined symbol: built for another torch")

    monkeypatch.setattr(LoraTrainer, "create_optimizer", create_optimizer)
    outcome = command("train", write_recipe())
    assert outcome.code == 5, outcome.stderr
    assert "cannot be imported: undefined symbol" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_table_names_fields_of_the_recipe(write_recipe):
    document = read_recipe(write_recipe()).to_dict()
    sections = {need.field.split(".")[0] for need in NEEDS}
    assert sections <= document.keys()
