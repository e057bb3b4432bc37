"""The shelf lists what its recipes say, and copies work."""

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


def test_a_recipe_on_the_shelf_describes_itself(shelf):
    plain, qlora = catalogue.list_recipes()
    assert (qlora.name, qlora.model) == ("some-model/qlora_1x24gb", "some/model")
    assert (qlora.method, qlora.hardware) == ("QLoRA nf4", "1 x 24 GiB")
    assert qlora.title == "A first one"
    assert (plain.name, plain.method, plain.hardware) == ("plain", "LoRA", "")


def test_a_copy_reads_as_its_original(shelf, tmp_path):
    copied = catalogue.copy_recipe("some-model/qlora_1x24gb", tmp_path / "new" / "mine.yaml")
    assert read_recipe(copied).quantization is not None


def test_a_copy_never_overwrites(shelf, tmp_path):
    target = write(tmp_path, "mine", "mine.yaml")
    with pytest.raises(RecipeError, match="exists already") as caught:
        catalogue.copy_recipe("plain", target)
    assert target.read_text() == "mine"
    assert caught.value.fix == "name another file, or delete this one"


def test_an_unknown_recipe_gets_the_nearest_name(shelf):
    with pytest.raises(RecipeError) as caught:
        catalogue.find_recipe("plane")
    assert caught.value.fix == "did you mean plain?"


def test_shipped_recipes_can_be_copied_anywhere():
    seen = 0
    for shipped in catalogue.list_recipes():
        paths = [path for _field, path in _paths(read_recipe(shipped.path).to_dict())]
        written = [
            path
            for path in paths
            if re.match(r"[./~]|.*/.*/", path) and not path.startswith("lora_sft://")
        ]
        assert not written, f"{shipped.name}: {written}"
        assert len(paths) >= 2, f"{shipped.name}: a model and a data set at least"
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
