"""The settings of a `generation_config.json` are checked before the first answer."""

from __future__ import annotations

import json

import pytest
from transformers import GenerationConfig

from lora_sft.errors import ModelError
from lora_sft.model_files.generation_settings import KINDS, read_generation_settings


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"eos_token_id": -1}, "eos_token_id -1 cannot be the id of a token"),
        ({"eos_token_id": [2, 10**12]}, "eos_token_id 1000000000000 cannot be the id of a token"),
        ({"bos_token_id": {"a": 1}}, "bos_token_id must be"),
        ({"temperature": "hot"}, "temperature must be a number or null"),
    ],
)
def test_a_setting_that_fails_later_is_refused(tmp_path, settings, reason):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=reason) as caught:
        read_generation_settings(path)
    assert str(path) in caught.value.where


def test_a_missing_file_has_no_settings(tmp_path):
    assert read_generation_settings(tmp_path / "generation_config.json") == {}


def test_every_checked_setting_is_one_of_transformers():
    assert KINDS.keys() <= vars(GenerationConfig()).keys() | {"guidance_scale"}
