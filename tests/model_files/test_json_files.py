"""Whatever is wrong with a JSON file of a model, the error names the file and the field."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from lora_sft.errors import ModelError
from lora_sft.model_files.json_files import describe_kind, is_of_kind, read_json_object


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b'{"a": ', "is not JSON"),
        (b"\xff\xfe{}", "is not a text in UTF-8"),
        (b"[1]", "does not hold a JSON object"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, reason):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_json_object(path, fix="download it")
    assert caught.value.what.startswith(f"config.json {reason}")
    assert caught.value.where == str(path)
    assert caught.value.fix == "download it"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json cannot be read: Is a directory"):
        read_json_object(tmp_path / "config.json")


def test_a_field_of_another_type_is_named_with_its_value(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"r": "text"}')
    with pytest.raises(ModelError) as caught:
        read_json_object(path, {"r": int | None})
    assert caught.value.what == 'config.json: r must be a whole number or null, not "text"'
    assert caught.value.where == f"{path}  r"


def test_a_required_field_may_not_be_missing(tmp_path):
    path = tmp_path / "index.json"
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json has no field weight_map"):
        read_json_object(path, required=("weight_map",))


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (int, (0, -1), (True, 0.5, "1", None)),
        (float, (0, 0.5), (True, "1")),
        (bool, (True, False), (0, 1, "true")),
        (str | None, ("", None), (0, [])),
        (list[int], ([], [1]), (1, ["a"], [True], {})),
        (dict[str, list[int]], ({}, {"a": [1]}), ({"a": 1}, [], None)),
        (Literal["a", "b"] | None, ("a", None), ("c", 1)),
        (list[Any], ([None, {}],), ({},)),
    ],
)
def test_types_are_those_of_json(kind, right, wrong):
    assert all(is_of_kind(value, kind) for value in right)
    assert not any(is_of_kind(value, kind) for value in wrong)
    assert json.dumps(describe_kind(kind))  # every type has words
