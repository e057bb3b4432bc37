"""The schema for editors says what the reader says."""

from __future__ import annotations

import json

from lora_sft.recipe import recipe_json_schema
from lora_sft.recipe.schema import SECTIONS, TOP_LEVEL, section_fields


def test_the_schema_is_json_and_names_every_section():
    schema = recipe_json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(TOP_LEVEL)
    assert schema["additionalProperties"] is False


def test_every_setting_of_ours_is_explained():
    seen = 0
    for section in SECTIONS.values():
        for name, field in section_fields(section).items():
            assert field.help, name
            seen += 1
    assert seen > 25


def test_libraries_and_our_own_settings_stand_side_by_side():
    properties = recipe_json_schema()["properties"]
    train = properties["train"]["properties"]
    assert train["learning_rate"]["default"] == 2e-4
    assert train["early_stopping_patience"]["type"] == ["integer", "null"]
    assert "max_length" not in train
    assert "lora_dropout" in properties["adapter"]["properties"]
    data = properties["data"]["properties"]
    assert data["datasets"]["items"]["properties"]["path"]["type"] == ["string"]
    assert data["packing"]["anyOf"] == [{"enum": ["auto"]}, {"type": ["boolean"]}]
