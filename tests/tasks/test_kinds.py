"""Each kind of task reads the rows that people have, writes their answers and reads them again."""

from __future__ import annotations

from typing import get_args

import pytest

from lora_sft.recipe import TaskSection
from lora_sft.recipe.sections.task import TaskName
from lora_sft.tasks.kind import ForbiddenRow, UnusableRow
from lora_sft.tasks.table import KINDS

CLASSIFY = KINDS["text-classification"]
ANSWER = KINDS["question-answering"]


def make_task(kind, **settings):
    return TaskSection(kind=kind, **settings)


def read_answers(kind, values, **settings):
    return KINDS[kind].read(values, make_task(kind, **settings)).answers


def test_the_recipe_names_every_kind_and_chat():
    assert set(get_args(TaskName)) == {"chat", *KINDS}


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("refund", "refund"),
        (" refund ", "refund"),
        (3, "3"),
        (2.0, "2"),
        (2.5, "2.5"),
        (True, "true"),
        (-1, "-1"),
    ],
)
def test_a_label_is_a_text_or_a_number(written, label):
    values = {"text": "x", "label": written}
    assert read_answers("text-classification", values) == (label,)


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"label": ["b", "a"]}, {}),
        ({"label": '["b", "a"]'}, {}),
        ({"label": "b; a"}, {"label_separator": "; "}),
        ({"a": 1, "b": "1", "c": 0}, {"label_columns": ["a", "b", "c"]}),
    ],
    ids=["list", "JSON in a cell", "separated", "columns"],
)
def test_several_labels_in_four_spellings(values, settings):
    found = read_answers(
        "text-classification", {"text": "x", **values}, multi_label=True, **settings
    )
    assert found == (["a", "b"],)


def test_several_labels_are_written_in_the_order_of_the_recipe_and_read_again():
    task = make_task("text-classification", multi_label=True, labels=["b", "a", "c"])
    [answer] = CLASSIFY.read({"text": "x", "label": ["a", "b"]}, task).answers
    assert CLASSIFY.write(answer, task) == "b, a"
    assert CLASSIFY.parse("a, b", task) == ["b", "a"]
    assert CLASSIFY.parse("a, d", task) is None
    assert CLASSIFY.write([], task) == "none"
    assert CLASSIFY.parse("none", task) == []


def test_numbers_are_sorted_as_numbers():
    assert CLASSIFY.sort_labels({"10", "9", "b", "a"}) == ["9", "10", "a", "b"]


@pytest.mark.parametrize("missing", [None, ""])
def test_a_row_without_a_label_is_unlabelled(missing):
    with pytest.raises(UnusableRow) as unusable:
        read_answers("text-classification", {"text": "x", "label": missing})
    assert unusable.value.reason == "unlabelled"


def test_an_unknown_label_is_refused_with_the_nearest_one():
    with pytest.raises(ForbiddenRow) as forbidden:
        read_answers(
            "text-classification", {"text": "x", "label": "refnd"}, labels=["refund", "ok"]
        )
    assert 'write "refund"' in forbidden.value.fix


def test_an_answer_that_is_no_label_is_unparseable():
    task = make_task("text-classification", labels=["a", "b"])
    assert [CLASSIFY.parse(text, task) for text in (" a\n", "A", "a.")] == ["a", None, None]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Paris", "Paris, France"], "answer_start": [0, 0]},
        [{"text": "Paris", "answer_start": 0}, {"text": "Paris, France"}],
        ["Paris", "Paris, France"],
        '{"text": ["Paris", "Paris, France"], "answer_start": [0, 0]}',
    ],
    ids=["SQuAD", "objects", "texts", "JSON text"],
)
def test_accepted_answers_in_every_spelling(answers):
    values = {"question": "Where?", "context": "Paris, France", "answers": answers}
    assert read_answers("question-answering", values) == ("Paris", "Paris, France")


def test_a_question_without_an_answer_learns_the_text_of_the_recipe():
    task = make_task("question-answering", no_answer="n/a")
    values = {"question": "Where?", "context": "x", "answers": {"text": [], "answer_start": []}}
    assert ANSWER.read(values, task).answers == ()
    assert ANSWER.read({**values, "answers": None, "is_impossible": True}, task).answers == ()
    assert ANSWER.write(None, task) == "n/a"
    assert ANSWER.parse(" n/a", task) == ""


@pytest.mark.parametrize(
    ("answers", "detail"),
    [
        ({"text": ["Paris"], "answer_start": [3]}, "at answer_start 3"),
        ({"text": [" "], "answer_start": [0]}, "empty"),
        ({"text": ["Paris"], "answer_start": [0, 1]}, "another number"),
        ("{", "not valid JSON"),
        (None, "missing"),
    ],
)
def test_broken_answers_are_unusable(answers, detail):
    values = {"question": "Where?", "context": "Paris", "answers": answers}
    with pytest.raises(UnusableRow, match=detail):
        read_answers("question-answering", values)


def test_a_translation_is_two_columns_or_one_object():
    assert read_answers("translation", {"source": "a", "target": "b"}) == ("b",)
    pair = {"translation": {"en": "a", "de": "b"}}
    languages = {"source_lang": "en", "target_lang": "de"}
    assert read_answers("translation", pair, **languages) == ("b",)
    with pytest.raises(UnusableRow, match="target_lang"):
        read_answers("translation", pair, source_lang="en", target_lang="fr")


def test_a_document_of_several_parts_is_joined_and_every_summary_is_accepted():
    task = make_task("summarization")
    row = KINDS["summarization"].read({"document": ["a", "b"], "summary": ["s", "t"]}, task)
    assert row.inputs == {"document": "a b"}
    assert row.answers == ("s", "t")


@pytest.mark.parametrize("written", ['{"b": 1, "a": "é"}', {"b": 1, "a": "é"}])
def test_extraction_learns_json_with_the_keys_of_the_row(written):
    task, kind = make_task("extraction"), KINDS["extraction"]
    [answer] = kind.read({"text": "x", "json": written}, task).answers
    assert kind.write(answer, task) == '{"b": 1, "a": "é"}'
    assert kind.parse(' {"a": "é", "b": 1}', task) == answer
    assert kind.parse("{", task) is None


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text-classification", {"text": " ", "label": "a"}),
        ("text-classification", {"text": "x", "label": ["a", "b"]}),
        ("text-classification", {"text": "x", "label": {"a": 1}}),
        ("translation", {"source": "a", "target": ""}),
        ("summarization", {"document": "a", "summary": []}),
        ("extraction", {"text": "x", "json": "{"}),
        ("extraction", {"text": "x", "json": "NaN"}),
        ("extraction", {"text": "x", "json": {"a": b"bytes"}}),
        ("extraction", {"text": "x", "json": {"a": float("nan")}}),
    ],
)
def test_a_row_without_input_or_answer_is_malformed(kind, values):
    with pytest.raises(UnusableRow) as unusable:
        read_answers(kind, values)
    assert unusable.value.reason == "malformed"
