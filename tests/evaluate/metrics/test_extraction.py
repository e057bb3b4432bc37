"""The metrics of extraction, against numbers computed by hand."""

from __future__ import annotations

import json

import pytest

from lora_sft.evaluate.metrics.extraction import (
    exact_match,
    field_accuracy,
    field_precision,
    field_recall,
    valid_json,
)

REFERENCE = {"name": "Ann", "age": 41, "tags": ["x", "y"], "home": {"city": "Rome", "zip": None}}
NO_JSON = ["", "Ann", "{'name': 'Ann'}", '{"name": "Ann"', '{"a": 1} {"a": 1}', '{"a": NaN}', None]


@pytest.mark.parametrize(
    "answer",
    [
        REFERENCE,
        json.dumps(REFERENCE),
        json.dumps(REFERENCE, indent=2, sort_keys=True) + "\n",
        '{"home":{"zip":null,"city":"Rome"},"tags":["x","y"],"age":4.1e1,"name":"\\u0041nn"}',
    ],
)
def test_white_space_the_order_of_keys_and_the_spelling_of_a_value_do_not_matter(answer):
    assert exact_match([answer], [REFERENCE]) == 1
    assert exact_match([answer], [json.dumps(REFERENCE)]) == 1
    assert field_accuracy([answer], [REFERENCE]) == field_precision([answer], [REFERENCE]) == 1


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1", "1.0", True),
        ("[1e2]", "[100]", True),
        ("true", "1", False),
        ("[false]", "[0]", False),
        ('{"a": {"b": true}}', '{"a": {"b": 1}}', False),
        ("true", "true", True),
        ("null", "null", True),
        ("null", "false", False),
        ("null", '""', False),
        ('"1"', "1", False),
        ("[1, 2]", "[2, 1]", False),
        ("[1, 2]", "[1]", False),
        ("{}", "[]", False),
        ('{"a": null}', "{}", False),
        ('{"a": 1}', '{"b": 1}', False),
        ("12345678901234567890", "12345678901234567891", False),
    ],
)
def test_values_are_equal_as_json_values(one, other, equal):
    assert exact_match([one], [other]) == exact_match([other], [one]) == equal
    field = [f'{{"field": {one}}}'], [f'{{"field": {other}}}']
    assert field_accuracy(*field) == equal


def test_fields_by_hand():
    references = [{"a": 1, "b": {"c": 2, "d": 3}, "e": "x"}, {"a": 1}]
    answers = ['{"a": 1, "b": {"c": 2, "d": 4}, "z": 0}', '{"a": 1}']
    # Right: a of both rows. Expected: 3 + 1. Produced: 3 + 1. A nested value is right as a whole.
    assert field_accuracy(answers, references) == field_recall(answers, references) == 2 / 4
    assert field_precision(answers, references) == 2 / 4
    # A row with one more field that is wrong.
    assert field_precision([answers[0], '{"a": 1, "y": 0}'], references) == 2 / 5
    assert exact_match(answers, references) == 1 / 2


@pytest.mark.parametrize("answer", NO_JSON)
def test_each_expected_field_of_an_unparseable_answer_is_wrong(answer):
    answers, references = [answer, {"a": 1}], [{"a": 1, "b": 2}, {"a": 1}]
    assert exact_match(answers, references) == valid_json(answers, references) == 1 / 2
    assert field_accuracy(answers, references) == field_recall(answers, references) == 1 / 3
    assert field_precision(answers, references) == 1


@pytest.mark.parametrize("answer", ["[1]", '"text"', "3", "null"])
def test_a_value_that_is_no_object_is_valid_and_has_no_field(answer):
    assert valid_json([answer], [REFERENCE]) == 1
    assert field_accuracy([answer], [REFERENCE]) == field_precision([answer], [REFERENCE]) == 0


def test_two_texts_that_are_no_json_are_not_equal():
    assert exact_match(["none"], ["none"]) == 0


def test_rows_without_fields_score_zero():
    assert field_accuracy(["{}"], [{}]) == field_precision(["{}"], [{}]) == 0
    assert exact_match(["{}"], [{}]) == 1


def test_deep_nesting_of_a_model_that_repeats_itself_is_no_crash():
    deep = "[" * 100_000
    assert valid_json([deep], [REFERENCE]) == exact_match([deep], [REFERENCE]) == 0
    nested = {"a": json.loads("[" * 400 + "1" + "]" * 400)}
    assert exact_match([json.dumps(nested)], [nested]) == 1
    digits = "1" * 10_000
    assert exact_match([digits], [1]) == 0
