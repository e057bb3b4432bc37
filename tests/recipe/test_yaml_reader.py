"""YAML in a recipe has an obvious meaning, or it is refused with a reason."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.yaml_reader import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    read_yaml_file,
    resolve_scalar,
    write_yaml,
    write_yaml_inline,
)
from tests.recipe.recipes import SMALLEST, fault_of, faults_of, write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0),
        ("010", 10), ("-3", -3), ("+3", 3), ("0o17", 15), ("0x1F", 31),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("2026-01-31", "2026-01-31"),
        ("1.2.3", "1.2.3"), ("e5", "e5"), (".", "."), ("0b11", "0b11"), ("tRUE", "tRUE"),
        ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    resolved = resolve_scalar(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_special_floats_are_read():
    assert resolve_scalar("-.inf") == -math.inf
    assert math.isnan(resolve_scalar(".nan"))


@pytest.mark.parametrize(
    "value",
    ["2e-4", "010", "on", "no", "null", "~", "", "1:30", "0o17", "2026-01-31", "a: b", "é\n", "#"],
)
def test_text_that_looks_like_another_type_is_still_text_after_writing(tmp_path, value):
    data = {"key": value, "list": [value, 1, 2e-4, None, True], "map": {"inner": value}}
    path = write(tmp_path, write_yaml(data))
    read_back = read_yaml_file(path, "my.yaml", FaultList())
    assert read_back is not None
    assert read_back.plain() == data


def test_yaml_on_one_line_has_no_document_end_marker():
    assert write_yaml_inline(2e-4) == "0.0002"
    assert write_yaml_inline({"fraction": 0.05}) == "{fraction: 0.05}"
    assert write_yaml_inline("all-linear") == "all-linear"


REFUSED = [
    ("train:\n  seed: 1\n  seed: 2\n", "written twice, on lines 7 and 8", "my.yaml:8  train.seed"),
    ("train:\n  seed: !!int 1\n", "tags (`!!int`)", "my.yaml:7  train.seed"),
    ("train:\n  seed: !!python/name:os.system x\n", "tags (`!!python", "my.yaml:7  train.seed"),
    ("train: &all\n  seed: 1\n", "anchors (`&all`)", "my.yaml:6  train"),
    ("train:\n  seed: *one\n", "aliases (`*one`)", "my.yaml:7  train.seed"),
    ("train:\n  <<: {seed: 1}\n", "merge keys", "my.yaml:7  train.<<"),
    ("train:\n  1: 2\n", "a key must be text", "my.yaml:7  train.1"),
    ("train:\n  [a, b]: 2\n", "a key must be text", "my.yaml:7  train.?"),
    ("train:\n  {a: {b: c}}: 2\n", "a key must be text", "my.yaml:7  train.?"),
    ("train:\n  true: 2\n", "a key must be text", "my.yaml:7  train.true"),
    ("---\nmodel: other\n", "a second one starts here", "my.yaml:6"),
    ("train:\n\tseed: 1\n", "not valid YAML", "my.yaml:7"),
    ("train: {seed: 1\n", "not valid YAML", "my.yaml:7"),
    ("train: a: b\n", "not valid YAML", "my.yaml:6"),
    (
        "train:\n  lr_scheduler_kwargs: {a: " + "[" * 30 + "]" * 30 + "}",
        f"more than {MAX_DEPTH} levels",
        "my.yaml:7  train.lr_scheduler_kwargs.a.0",
    ),
]


@pytest.mark.parametrize(("text", "what", "where"), REFUSED)
def test_yaml_with_a_hidden_meaning_is_refused_with_its_line(tmp_path, text, what, where):
    fault = fault_of(tmp_path, SMALLEST + text)
    assert what in fault.what
    assert fault.where.startswith(where)
    assert fault.fix


def test_a_repeated_section_is_reported_once(tmp_path):
    fault = fault_of(tmp_path, SMALLEST + "model: other\n")
    assert fault.what == '"model" is written twice, on lines 1 and 6'


def test_several_faults_of_the_yaml_are_reported_together(tmp_path):
    text = SMALLEST + "train:\n  seed: 1\n  seed: 2\n  optim: !x adafactor\n  bf16: *a\n"
    assert len(faults_of(tmp_path, text)) == 3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the recipe is empty"),
        (b"# only a comment\n", "the recipe is empty"),
        (b"- a\n- b\n", "a recipe must be a mapping of sections, but this file is a list"),
        (b"word\n", "must be a mapping of sections, but this file is the single value 'word'"),
        (b"model: \xff\xfe\n", "the file is not UTF-8 (byte 7)"),
        (b"# " + b"x" * MAX_FILE_BYTES, "a recipe may have at most 1,000,000"),
        (b"model: \x00\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe_has_one_fault(tmp_path, content, what):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    faults = FaultList()
    assert read_yaml_file(path, "my.yaml", faults) is None
    with pytest.raises(ValueError, match="error: ") as caught:
        faults.raise_if_any()
    assert what in str(caught.value)


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: some/model\n")
    tree = read_yaml_file(path, "my.yaml", FaultList())
    assert tree is not None
    assert tree.plain() == {"model": "some/model"}
