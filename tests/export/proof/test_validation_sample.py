"""The rows that a run saved for the proof of a merge are checked before a model reads them."""

from __future__ import annotations

import json

import pytest

from lora_sft.errors import ModelError
from lora_sft.export.proof.answer_check import read_validation_sample

ROW = {"input_ids": [1, 2], "labels": [-100, 2]}


def write_sample(run, rows):
    (run / "validation_sample.json").write_text(json.dumps({"rows": rows}))
    return run


def test_the_saved_rows_are_returned(tmp_path):
    assert read_validation_sample(write_sample(tmp_path, [ROW]), 10) == [ROW]
    assert read_validation_sample(None, 10) == []


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [1, 2]},
        {"input_ids": [], "labels": []},
        {"input_ids": [1, 10], "labels": [-100, 2]},
        {"input_ids": [-1, 2], "labels": [-100, 2]},
        {"input_ids": [1, 2], "labels": [-100, 10]},
        {"input_ids": "text", "labels": [1, 2]},
        3,
    ],
)
def test_a_damaged_row_is_refused_and_the_fix_is_to_delete_the_file(tmp_path, row):
    with pytest.raises(ModelError) as caught:
        read_validation_sample(write_sample(tmp_path, [ROW, row]), 10)
    assert "validation_sample.json" in caught.value.what
    assert str(tmp_path / "validation_sample.json") in caught.value.where
    assert "delete it" in caught.value.fix
