"""A recipe can extend other recipes, and the command line overrides all of them."""

from __future__ import annotations

import pytest

from lora_sft.errors import RecipeError
from lora_sft.recipe import read_recipe
from tests.recipe.recipes import write

PARENT = """\
model: {model_name_or_path: base, dtype: float32}
quantization: nf4
adapter: {r: 8, target_modules: [q_proj, v_proj]}
data:
  datasets: [{path: rows.jsonl}, {path: more/data}]
  validation: {fraction: 0.1}
  max_length: 128
train: {seed: 1, learning_rate: 1e-3}
"""
CHILD = """\
extends: ../shared/parent.yaml
adapter: {target_modules: [k_proj]}
data: {validation: null}
quantization: {bnb_4bit_quant_type: fp4}
train: {seed: 2}
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    write(tmp_path, PARENT, "shared/parent.yaml")
    write(tmp_path, "{}", "shared/rows.jsonl")
    (tmp_path / "shared" / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    write(tmp_path, CHILD, "mine/child.yaml")
    return "mine/child.yaml"


def test_mappings_are_merged_and_lists_and_values_are_replaced(child):
    recipe = read_recipe(child)
    assert recipe.adapter.lora["r"] == 8
    assert recipe.adapter.lora["target_modules"] == ["k_proj"]
    assert recipe.train["seed"] == 2
    assert recipe.train["learning_rate"] == 1e-3
    assert recipe.data.validation is None
    assert len(recipe.data.datasets) == 2


def test_a_child_can_change_a_setting_of_the_parents_preset(child):
    quantization = read_recipe(child).quantization
    assert quantization is not None
    assert quantization["load_in_4bit"] is True
    assert quantization["bnb_4bit_quant_type"] == "fp4"


def test_the_origin_of_each_value_is_the_file_and_line_that_set_it(child):
    origins = read_recipe(child, ["train.warmup_steps=0.1"]).origins
    assert origins["adapter.r"] == "shared/parent.yaml:3"
    assert origins["adapter.target_modules"] == "mine/child.yaml:2"
    assert origins["train.seed"] == "mine/child.yaml:5"
    assert origins["train.learning_rate"] == "shared/parent.yaml:8"
    assert origins["train.warmup_steps"] == "command line"


def test_a_relative_path_in_the_parent_starts_from_the_parents_folder(child, tmp_path):
    recipe = read_recipe(child)
    assert recipe.data.datasets[0].location == str(tmp_path / "shared" / "rows.jsonl")
    assert recipe.model.location == str(tmp_path / "shared" / "base")


def test_the_error_for_a_fault_in_the_parent_names_the_parents_file(child, tmp_path):
    write(tmp_path, PARENT.replace("seed: 1", "sede: 1"), "shared/parent.yaml")
    with pytest.raises(RecipeError) as caught:
        read_recipe(child)
    assert caught.value.where == "shared/parent.yaml:8  train.sede"


def test_recipes_that_extend_each_other_in_a_circle_are_refused(tmp_path):
    first = write(tmp_path, "extends: b.yaml\n", "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError) as caught:
        read_recipe(first)
    assert caught.value.what == (
        "the recipes extend each other in a circle: a.yaml -> b.yaml -> a.yaml"
    )
    assert caught.value.where.endswith("b.yaml:1  extends")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("extends: [a.yaml]", "extends must be the path of one recipe"),
        ("extends: nowhere.yaml", 'no such recipe: "nowhere.yaml"'),
    ],
)
def test_a_parent_that_cannot_be_read_is_an_error(tmp_path, line, what):
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, line))
    assert caught.value.what == what
    assert caught.value.where.endswith("my.yaml:1  extends")


PRIVATE_FILES = [
    "root:CANARY:19000:0:99999:7:::\n",
    "root:x:0:0:root:/root:/bin/CANARY\ndaemon:x:1:1::/:/CANARY\n",
    "CANARY\n",
    "- CANARY\n- data\n",
    "-----BEGIN CANARY KEY-----\nQ0FOQVJZ\n-----END CANARY KEY-----\n",
    "machine host login me password CANARY\n",
    "export TOKEN=CANARY\nPATH=/CANARY\n",
    "apiVersion: v1\nkind: Secret\ndata:\n  password: CANARY\n",
    "users: [{name: me, token: CANARY}]\n",
    "model: a\nmodel: CANARY\n",
    "model: !CANARY a\n",
    "model: &CANARY a\n",
    "model: *CANARY\n",
    "model: 'CANARY\n",
    'data: {x: "\\CANARY"}\n',
    "---\nmodel: a\n---\nCANARY: 1\n",
    "1: CANARY\n",
    "\x00CANARY",
    "",
]


@pytest.mark.parametrize("content", PRIVATE_FILES)
@pytest.mark.parametrize("is_direct", [True, False])
def test_a_file_that_is_no_recipe_is_not_quoted_where_a_recipe_extends_it(
    tmp_path, command, content, is_direct
):
    write(tmp_path, content, "private")
    write(tmp_path, "extends: private\nmodel: a\n", "between.yaml")
    line = f"extends: {tmp_path / 'private' if is_direct else 'between.yaml'}\n"
    outcome = command("show", write(tmp_path, line))
    assert outcome.code == 2
    shown = outcome.stderr.splitlines()
    assert [line[:6] for line in shown] == ["error:", "where:", "fix:  "]
    assert "private:" in shown[1]
    assert "CANARY" not in outcome.stderr


def test_the_fix_for_such_a_file_is_to_look_at_it(tmp_path, command):
    write(tmp_path, "model: a\nmodel: twice\n", "parent.yaml")
    outcome = command("show", write(tmp_path, "extends: parent.yaml\n"))
    assert f"lora-sft show {tmp_path / 'parent.yaml'}" in outcome.stderr
    assert "written twice" in command("show", tmp_path / "parent.yaml").stderr


def test_overrides_change_list_items_and_create_missing_sections(child):
    recipe = read_recipe(
        child,
        ["data.datasets.1.path=other/data", "tokenizer.pad_token='<pad>'", "data.test.fraction=.2"],
    )
    assert recipe.data.datasets[1].path == "other/data"
    assert recipe.tokenizer.pad_token == "<pad>"
    assert recipe.data.test is not None
    assert recipe.data.test.fraction == 0.2


def test_overrides_can_create_the_whole_data_section(tmp_path):
    path = write(tmp_path, "model: some/model\n")
    recipe = read_recipe(path, ["data.datasets.0.path=some/data", "data.max_length=64"])
    assert recipe.data.datasets[0].path == "some/data"


def test_the_last_override_of_a_setting_wins(child):
    assert read_recipe(child, ["train.seed=3", "train.seed=4"]).train["seed"] == 4


def test_replacing_the_model_name_keeps_the_other_model_settings(tmp_path):
    parent = tmp_path / "parent.yaml"
    parent.write_text(
        "model: {model_name_or_path: org/one, dtype: float32}\n"
        "data: {datasets: [{path: org/rows}], max_length: 64}\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent.yaml\nmodel: org/two\n")
    for recipe in (read_recipe(child), read_recipe(parent, ["model=org/two"])):
        assert recipe.model.model_name_or_path == "org/two"
        assert recipe.model.dtype == "float32"
