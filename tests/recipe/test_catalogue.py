"""The list of shipped recipes shows the settings of each recipe, and a copy of a recipe works."""

from __future__ import annotations

import re

import pytest

from lora_sft.errors import RecipeError
from lora_sft.recipe import catalogue, read_recipe
from tests.recipe.recipes import SMALLEST, write


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    folder = tmp_path / "shelf"
    header = "# title: A first one\n# hardware: 1 x 24 GiB\n\n"
    write(folder, header + SMALLEST + "quantization: nf4\n", "some-model/qlora_1x24gb.yaml")
    write(folder, SMALLEST, "plain.yaml")
    monkeypatch.setattr(catalogue, "find_shipped_folder", lambda _name: folder)
    return folder


def test_the_list_shows_settings_and_comments_of_a_recipe(shelf):
    plain, qlora = catalogue.list_recipes()
    assert (qlora.name, qlora.model) == ("some-model/qlora_1x24gb", "some/model")
    assert (qlora.method, qlora.hardware) == ("QLoRA nf4", "1 x 24 GiB")
    assert qlora.title == "A first one"
    assert (plain.name, plain.method, plain.hardware) == ("plain", "LoRA", "")


def test_a_copy_has_the_settings_of_the_original(shelf, tmp_path):
    copied = catalogue.copy_recipe("some-model/qlora_1x24gb", tmp_path / "new" / "mine.yaml")
    assert read_recipe(copied).quantization is not None


def test_a_copy_never_overwrites_a_file(shelf, tmp_path):
    target = write(tmp_path, "mine", "mine.yaml")
    with pytest.raises(RecipeError, match="already exists") as caught:
        catalogue.copy_recipe("plain", target)
    assert target.read_text() == "mine"
    assert caught.value.fix == "choose another file name, or delete this file"


def test_the_error_for_an_unknown_recipe_names_the_most_similar_recipe(shelf):
    with pytest.raises(RecipeError) as caught:
        catalogue.find_recipe("plane")
    assert caught.value.fix == "did you mean plain?"


def test_shipped_recipes_contain_no_local_paths():
    seen = 0
    for shipped in catalogue.list_recipes():
        paths = [path for _field, path in _paths(read_recipe(shipped.path).to_dict())]
        written = [
            path
            for path in paths
            if re.match(r"[./~]|.*/.*/", path) and not path.startswith("lora_sft://")
        ]
        assert not written, f"{shipped.name}: {written}"
        assert len(paths) >= 2, f"{shipped.name}: found fewer paths than a model and a data set"
        seen += 1
    assert seen >= 4


def _paths(data, name=""):
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _paths(value, key)
    elif isinstance(data, list):
        for value in data:
            yield from _paths(value, name)
    elif isinstance(data, str) and name in (
        "path",
        "model_name_or_path",
        "init_from",
        "chat_template",
    ):
        yield name, data
