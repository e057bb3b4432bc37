"""`read_recipe` returns a complete recipe, or one error with all faults."""

from __future__ import annotations

import json
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path

import pytest

from lora_sft.errors import RecipeError
from lora_sft.recipe import read_recipe, suggest
from lora_sft.recipe.fault_list import MOST_SHOWN
from lora_sft.recipe.schema import TRAIN_DEFAULTS
from tests.recipe.recipes import SMALLEST, fault_of, faults_of, read, read_smallest, write

FIVE_FAULTS = """\
model: some/model
data:
  datasets:
    - path: nowhere/to/rows.jsonl
  max_length: 128
  max_length: 256
train:
  learning_ratee: 1e-4
  num_train_epochs: three
  bf16: true
  fp16: true
"""


def test_five_different_faults_are_reported_together_in_the_order_of_the_file(tmp_path):
    faults = faults_of(tmp_path, FIVE_FAULTS)
    assert [(fault.where, fault.what) for fault in faults] == [
        (
            "my.yaml:4  data.datasets.0.path",
            'no such file, folder or glob: "nowhere/to/rows.jsonl"',
        ),
        ("my.yaml:6  data.max_length", '"max_length" is written twice, on lines 5 and 6'),
        ("my.yaml:8  train.learning_ratee", 'unknown key "learning_ratee" in train'),
        (
            "my.yaml:9  train.num_train_epochs",
            'train.num_train_epochs must be a number, not the text "three"',
        ),
        ("my.yaml:10  train.bf16, my.yaml:11  train.fp16", "bf16 and fp16 are both true"),
    ]
    assert all(fault.fix for fault in faults)


@pytest.mark.parametrize(
    "many",
    [
        "".join(f"unknown_key_{i}: 1\n" for i in range(3_000)),
        "train:\n" + "".join(f"  learning_rat_{i}: 1\n" for i in range(3_000)),
        "evaluate: {metrics: [], "
        + ", ".join(f"x{i}: {{deep: {'y' * 100}}}" for i in range(3_000))
        + "}\n",
    ],
)
def test_of_many_faults_the_first_are_shown_and_the_others_counted(tmp_path, monkeypatch, many):
    searched = []

    def find(name, *arguments, **options):
        searched.append(name)
        return get_close_matches(name, *arguments, **options)

    monkeypatch.setattr(suggest, "get_close_matches", find)
    shown = faults_of(tmp_path, SMALLEST + many)
    assert len(shown) == MOST_SHOWN + 1
    assert [fault.what for fault in shown[-1:]] == ["2,950 more faults from here on"]
    assert all(fault.fix for fault in shown)
    assert len(searched) <= 2 * MOST_SHOWN


def test_a_fault_with_a_huge_value_is_short(tmp_path):
    shown = str(fault_of(tmp_path, f"{SMALLEST}output_di: {'x' * 100_000}\n"))
    assert 'did you mean "output_dir"?' in shown
    assert len(shown) < 10_000


def test_the_smallest_recipe_gets_every_default(tmp_path):
    recipe = read_smallest(tmp_path)
    assert recipe.model.model_name_or_path == recipe.model.location == "some/model"
    assert (recipe.model.dtype, recipe.model.revision) == ("bfloat16", None)
    assert recipe.quantization is None
    assert recipe.adapter.lora == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
    }
    assert recipe.train == TRAIN_DEFAULTS
    assert recipe.data.loss_on == recipe.data.packing == "auto"
    assert recipe.data.overlong == "drop"
    assert recipe.data.datasets[0].repeat == 1.0
    assert recipe.evaluate.metrics == ["exact_match"]
    assert recipe.export.merge is None
    assert recipe.output_dir == "runs/my"
    assert recipe.source == tmp_path / "my.yaml"


def test_max_length_has_no_default(tmp_path):
    fault = fault_of(tmp_path, "model: some/model\ndata: {datasets: [{path: some/data}]}\n")
    assert fault.what == "data.max_length is required"
    assert fault.where == "my.yaml:2  data.max_length"
    assert fault.fix == "write data.max_length: 2048"


def test_the_error_for_a_recipe_without_sections_names_the_required_settings(tmp_path):
    faults = faults_of(tmp_path, "output_dir: runs/x\n")
    assert [fault.what for fault in faults] == [
        "model.model_name_or_path is required",
        "data.datasets is required",
        "data.max_length is required",
    ]


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ('data.max_length="2048"', "write data.max_length: 2048"),
        ("data.max_length=2048.0", "write data.max_length: 2048"),
        ("data.max_length=1", "write data.max_length: 2048"),
        ("data.loss_on=asistant", "write data.loss_on: assistant"),
        ("model.trust_remote_code=yes", "write model.trust_remote_code: true"),
        ("train.learning_rate=0", "write train.learning_rate: 0.0002"),
        ("train.learning_rate=.inf", "write train.learning_rate: 0.0002"),
        ("train.seed=true", "write train.seed: 42"),
        ("train.seed=1_000", "write train.seed: 1000"),
        ("train.lr_scheduler_type=cosin", "write train.lr_scheduler_type: cosine"),
        ("train.report_to=[1]", "write train.report_to: none"),
        ("adapter.r=0", "write adapter.r: 16"),
        ("adapter.lora_dropout=1", "write adapter.lora_dropout: 0.0"),
        ("adapter.modules_to_save=embed_tokens", "write adapter.modules_to_save: [embed_tokens]"),
        ("adapter.eva_config={}", "delete the line"),
        ("adapter=qlora", "write quantization: nf4 instead of this line"),
        ("adapter=null", "delete the line for the defaults, or write adapter: {r: 16}"),
        ("quantization=4bit", "write quantization: nf4"),
        ("quantization=8", "write quantization: {}"),
        ("data.datasets=train.jsonl", "write data.datasets: [{path: train.jsonl}]"),
        ("data.datasets={path: a.jsonl}", "write data.datasets: [{path: a.jsonl}]"),
        ("data.datasets=[a.jsonl]", "write data.datasets.0: {path: a.jsonl}"),
        ("data.validation=0.1", "write data.validation: {fraction: 0.1}"),
        ("data.validation={fraction: 1.5}", "write data.validation.fraction: 0.05"),
        ("data.chat_template=mine.jinja", "create "),
        ("data.chat_template='{{ messages }}'", "save it as a .jinja file"),
        ("tokenizer=other", "write tokenizer: {path: other}"),
        ("output_dir=3", "write output_dir: runs/my"),
        (
            "train.deepspeed=zero4",
            "write train.deepspeed: one of zero0, zero1",
        ),
        ("train.deepspeed=ds.json", "create "),
        ("extends=other.yaml", "write extends into the recipe"),
        ("learning_rate", "write it as section.field=value"),
        ("data.datasets.3.path=x", "items are counted from 0"),
        ("output_dir.name=x", "write output_dir=..."),
        ("train.seed=[1", "check the indentation"),
    ],
)
def test_the_error_for_an_invalid_value_gives_the_line_to_write(tmp_path, line, fix):
    fault = fault_of(tmp_path, SMALLEST + "output_dir: runs/my\n", line)
    assert fault.where.startswith("command line")
    assert fault.fix.startswith(fix)


def test_the_model_can_be_only_a_name(tmp_path):
    recipe = read(tmp_path, SMALLEST, "model.dtype=float32")
    assert recipe.model.model_name_or_path == "some/model"
    assert recipe.model.dtype == "float32"
    assert recipe.origins["model.model_name_or_path"].endswith("my.yaml:1")


def test_a_quantization_preset_is_expanded_to_its_settings(tmp_path):
    recipe = read_smallest(tmp_path, "quantization=nf4", "model.dtype=float16")
    assert recipe.quantization == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float16",
    }
    assert recipe.to_dict()["quantization"] == "nf4"
    assert read_smallest(tmp_path, "quantization=int8").quantization == {"load_in_8bit": True}


def test_a_setting_inside_a_preset_can_be_overridden(tmp_path):
    text = SMALLEST + "quantization: nf4\n"
    recipe = read(tmp_path, text, "quantization.bnb_4bit_use_double_quant=false")
    assert recipe.quantization is not None
    assert recipe.quantization["load_in_4bit"] is True
    assert recipe.quantization["bnb_4bit_use_double_quant"] is False


def test_setting_only_accumulation_removes_the_default_of_the_global_batch(tmp_path):
    recipe = read_smallest(tmp_path, "train.gradient_accumulation_steps=4")
    assert recipe.train["global_batch_size"] is None
    assert recipe.origins["train.global_batch_size"] == "default"
    both = ("train.gradient_accumulation_steps=4", "train.global_batch_size=8")
    assert read_smallest(tmp_path, *both).train["global_batch_size"] == 8


def test_gradient_checkpointing_is_read_as_activation_checkpointing(tmp_path):
    recipe = read_smallest(tmp_path, "train.gradient_checkpointing=false")
    assert recipe.train["activation_checkpointing"] is False
    assert "gradient_checkpointing" not in recipe.train
    assert recipe.origins["train.activation_checkpointing"] == "command line"


def test_the_place_of_a_setting_has_file_line_and_name(tmp_path):
    text = SMALLEST + "adapter:\n  target_modules:\n    - q_proj\n    - v_porj\n"
    recipe = read(tmp_path, text)
    source = tmp_path / "my.yaml"
    assert recipe.where("data.max_length") == f"{source}:5  data.max_length"
    assert recipe.where("adapter.target_modules[1]") == f"{source}:9  adapter.target_modules[1]"
    assert recipe.where("data.overlong") == f"{source}:2  data.overlong"
    assert recipe.where("train.seed") == f"{source}  train.seed"


def test_every_resolved_value_has_an_origin(tmp_path):
    recipe = read_smallest(tmp_path, "train.seed=7", "data.validation={fraction: 0.1}")
    origins = recipe.origins
    assert origins["train.seed"] == origins["data.validation.fraction"] == "command line"
    assert origins["data.datasets.0.path"] == f"{tmp_path}/my.yaml:4"
    assert origins["data.datasets.0.format"] == origins["train.learning_rate"] == "default"
    assert len(origins) > 50


FULL = """\
model: {model_name_or_path: base, dtype: float32}
tokenizer: {path: ./base}
quantization: {load_in_4bit: true}
adapter: {r: 8, target_modules: [q_proj], init_lora_weights: gaussian}
data:
  datasets:
    - {path: rows.jsonl, repeat: 0.5, rename_columns: {q: prompt}}
    - {path: "rows*.jsonl", format: messages}
    - {path: https://example.org/rows.jsonl}
    - {path: lora_sft://recipe}
  validation: {datasets: [{path: held.jsonl}]}
  test: {fraction: 0.1}
  chat_template: own.jinja
  chat_template_kwargs: {enable_thinking: false, date: "2026-01-31"}
  stop_tokens: ["on", "1e5"]
  max_length: 64
train: {gradient_accumulation_steps: 2, deepspeed: ds.json, eval_strategy: epoch}
output_dir: runs/x
"""


@pytest.fixture
def full_recipe(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    for name in ("rows.jsonl", "rows2.jsonl", "held.jsonl", "own.jinja", "ds.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return read_recipe(write(tmp_path, FULL))


def test_a_resolved_recipe_is_read_back_as_an_equal_recipe(tmp_path, full_recipe):
    text = json.dumps(full_recipe.to_dict())  # JSON is YAML
    again = read_recipe(write(tmp_path, text, "again.yaml"))
    assert again == full_recipe
    assert again.to_dict() == full_recipe.to_dict()
    assert read_recipe(write(tmp_path, full_recipe.annotated_text(), "shown.yaml")) == full_recipe


def test_a_resolved_recipe_is_read_back_equal_from_another_folder(
    tmp_path, full_recipe, monkeypatch
):
    elsewhere = write(tmp_path / "other" / "folder", full_recipe.resolved_text(), "recipe.yaml")
    monkeypatch.chdir(elsewhere.parent)
    again = read_recipe("recipe.yaml")
    assert again.data.datasets[1].path == str(tmp_path / "rows*.jsonl")
    assert again.data.datasets[3].path == "lora_sft://recipe"
    assert again.deepspeed_location == str(tmp_path / "ds.json")
    monkeypatch.chdir(tmp_path)
    assert again == full_recipe


def test_recipes_with_different_settings_are_not_equal(tmp_path):
    assert read_smallest(tmp_path) != read_smallest(tmp_path, "train.seed=1")
    assert read_smallest(tmp_path) != "recipe"


def test_an_existing_local_path_is_preferred(tmp_path, full_recipe):
    assert full_recipe.model.location == full_recipe.tokenizer.location == str(tmp_path / "base")
    places = [dataset.location for dataset in full_recipe.data.datasets]
    assert places[:3] == [
        str(tmp_path / "rows.jsonl"),
        str(tmp_path / "rows*.jsonl"),
        "https://example.org/rows.jsonl",
    ]
    assert places[3].endswith("lora_sft/recipe")
    assert full_recipe.data.chat_template_location == str(tmp_path / "own.jinja")


@pytest.mark.parametrize(
    ("override", "is_path"),
    [
        ("data.datasets.0.path=train", False),
        ("data.datasets.0.path=org/train", False),
        ("data.datasets.0.path=train.jsonl", True),
        ("data.datasets.0.path=train.csv.gz", True),
        ("data.datasets.0.path=org/*.parquet", True),
        ("data.datasets.0.path=a/b/c", True),
        ("data.datasets.0.path=~/rows", True),
        ("data.datasets.0.path=lora_sft://nothing", True),
        ("data.datasets.0.path=two words", True),
        ("model=gpt2", False),
        ("model=./gpt2", True),
        ("model=models/org/name", True),
        ("model=/models/name", True),
        ("adapter={init_from: runs/a/adapter}", True),
    ],
)
def test_a_text_that_looks_like_a_path_must_exist(tmp_path, override, is_path):
    if not is_path:
        read_smallest(tmp_path, override)
        return
    assert fault_of(tmp_path, SMALLEST, override).what.startswith("no such f")


def test_the_error_for_a_path_relative_to_the_wrong_folder_gives_the_right_path(
    tmp_path, monkeypatch
):
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SMALLEST.replace("some/data", "rows.jsonl"), "recipes/my.yaml")
    with pytest.raises(RecipeError) as caught:
        read_recipe("recipes/my.yaml")
    assert caught.value.where == "recipes/my.yaml:4  data.datasets.0.path"
    assert caught.value.fix.startswith("write ../rows.jsonl ")


def test_a_path_in_an_override_starts_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, SMALLEST, "recipes/my.yaml")
    recipe = read_recipe(path, ["data.datasets.0.path=rows.jsonl"])
    assert recipe.data.datasets[0].location == str(tmp_path / "rows.jsonl")


def test_the_error_for_a_misspelt_file_names_the_most_similar_file(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    fault = fault_of(tmp_path, SMALLEST.replace("some/data", "./trian.jsonl"))
    assert fault.fix == "did you mean train.jsonl?"


def test_the_suggestion_for_a_misspelt_shipped_file_keeps_the_prefix(tmp_path):
    written = SMALLEST.replace("some/data", "lora_sft://quickstart/data/trian.jsonl")
    fault = fault_of(tmp_path, written)
    assert fault.fix == "did you mean lora_sft://quickstart/data/train.jsonl?"


def test_a_missing_recipe_file_is_a_recipe_error(tmp_path, monkeypatch):
    write(tmp_path, SMALLEST)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        read_recipe("mi.yaml")
    assert (caught.value.what, caught.value.fix) == (
        'no such recipe: "mi.yaml"',
        "did you mean my.yaml?",
    )


def test_reading_a_recipe_imports_no_heavy_library(tmp_path):
    write(tmp_path, SMALLEST, "good.yaml")
    write(tmp_path, FIVE_FAULTS, "bad.yaml")
    code = """
import sys
from lora_sft.errors import RecipeError
from lora_sft.recipe import read_recipe, suggest
from lora_sft.recipe.fault_list import MOST_SHOWN
read_recipe("good.yaml")
try:
    read_recipe("bad.yaml")
except RecipeError as error:
    assert len(error.faults) == 5
heavy = {"torch", "transformers", "datasets", "peft", "trl", "numpy", "pydantic"}
print(sorted(heavy & sys.modules.keys()))
"""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
)
def test_a_shipped_deepspeed_policy_is_found_by_name_and_stored_as_a_name(tmp_path, name):
    recipe = read_smallest(tmp_path, f"train.deepspeed={name}")
    assert recipe.deepspeed_location is not None
    assert recipe.deepspeed_location.endswith(f"{name}.json")
    assert recipe.to_dict(absolute_paths=True)["train"]["deepspeed"] == name
