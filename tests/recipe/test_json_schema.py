"""The JSON Schema for editors matches the recipe reader."""

from __future__ import annotations

import json

from lora_sft.recipe import recipe_json_schema
from lora_sft.recipe.schema import SECTIONS, TOP_LEVEL
from lora_sft.recipe.sections.settings import section_fields


def test_the_schema_is_json_and_names_every_section():
    schema = recipe_json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(TOP_LEVEL)
    assert schema["additionalProperties"] is False


def test_each_of_our_settings_has_a_description():
    seen = 0
    for section in SECTIONS.values():
        for name, field in section_fields(section).items():
            assert field.help, name
            seen += 1
    assert seen > 25


def test_a_section_contains_the_librarys_settings_and_ours():
    properties = recipe_json_schema()["properties"]
    train = properties["train"]["properties"]
    assert train["learning_rate"]["default"] == 2e-4
    assert train["early_stopping_patience"]["type"] == ["integer", "null"]
    assert "max_length" not in train
    assert "lora_dropout" in properties["adapter"]["properties"]
    data = properties["data"]["properties"]
    assert data["datasets"]["items"]["properties"]["path"]["type"] == ["string"]
    assert data["packing"]["anyOf"] == [{"enum": ["auto"]}, {"type": ["boolean"]}]
