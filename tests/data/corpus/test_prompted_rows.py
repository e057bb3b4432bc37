"""Rows of a task, and rows with a prompt, become conversations whose answer is learned."""

from __future__ import annotations

import csv
import json

import pytest

ROWS = [
    {"text": f"{word} number {number}", "label": word}
    for number in range(12)
    for word in ("alpha", "beta")
]


@pytest.fixture
def preview(command, write_recipe, tmp_path):
    """Return a function that previews rows under a task, and returns the outcome."""

    def run(rows, *, name="rows.jsonl", dataset=None, task="text-classification", **data):
        path = tmp_path / name
        if name.endswith(".csv"):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        datasets = [{"path": name, **(dataset or {})}]
        recipe = write_recipe(task=task, data={"datasets": datasets, "validation": None, **data})
        return command("preview", recipe, "--format", "json")

    return run


def find_learned(outcome):
    return [row["turns"][0]["text"] for row in outcome.json["rows"] if not row["dropped"]]


def find_text(row):
    return "".join(row["tokens"]).replace("Ġ", " ")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_the_label_of_a_table_is_the_answer(preview, name):
    outcome = preview(ROWS[:2], name=name)
    assert outcome.code == 0, outcome.stderr
    assert [text.split("<")[0] for text in find_learned(outcome)] == ["alpha", "beta"]


def test_a_class_label_column_is_learned_as_its_names(command, write_recipe, tmp_path):
    from datasets import ClassLabel, Dataset

    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    rows.cast_column("label", ClassLabel(names=["no", "yes"])).to_parquet(tmp_path / "rows.parquet")
    datasets = [{"path": "rows.parquet"}]
    recipe = write_recipe(
        task="text-classification", data={"datasets": datasets, "validation": None}
    )
    outcome = command("preview", recipe, "--format", "json")
    assert [text.split("<")[0] for text in find_learned(outcome)] == ["yes", "no"]
    assert outcome.json["account"]["dropped"] == {"unlabelled": 1}


def test_a_prompt_of_the_data_set_has_priority_over_that_of_the_task(preview):
    rows = [{**ROWS[0], "topic": "greek"}]
    dataset = {"prompt": {"system": "Topic {{ topic }}", "user": "Name: {{ text }}"}}
    task = {"kind": "text-classification", "prompt": "Other {{ text }}"}
    [row] = preview(rows, dataset=dataset, task=task).json["rows"]
    assert "Topic greek" in find_text(row)
    assert "Name: alpha number 0" in find_text(row)
    [row] = preview(rows, task=task).json["rows"]
    assert "Other alpha number 0" in find_text(row)


def test_a_prompt_makes_conversations_without_a_task(preview):
    rows = [{"question": "Where?", "where": "Rome"}]
    dataset = {"prompt": {"user": "{{ question }}", "assistant": "In {{ where }}."}}
    outcome = preview(rows, dataset=dataset, task=None)
    assert outcome.code == 0, outcome.stderr
    assert find_learned(outcome)[0].startswith("In Rome.")


def test_a_column_that_a_row_lacks_is_a_counted_drop(preview):
    rows = [{"text": "a", "label": "x", "hint": "h"}, {"text": "b", "label": "y"}]
    outcome = preview(rows, dataset={"prompt": {"user": "{{ text }} {{ hint }}"}})
    assert outcome.json["account"]["dropped"] == {"malformed": 1}


def test_a_prompt_cannot_leave_its_sandbox(preview):
    hostile = "{{ text.__class__.__mro__ }}"
    outcome = preview(ROWS[:1], dataset={"prompt": {"user": hostile}})
    assert outcome.json["account"]["dropped"] == {"template_refused": 1}


def test_a_broken_prompt_is_an_error_with_its_place(preview):
    outcome = preview(ROWS[:1], dataset={"prompt": {"user": "{{ text"}})
    assert outcome.code == 3
    assert "prompt is not a valid template" in outcome.stderr


def test_an_unknown_label_stops_with_its_line(preview):
    task = {"kind": "text-classification", "labels": ["alpha", "gamma"]}
    outcome = preview(ROWS[:2], task=task)
    assert outcome.code == 3
    assert 'the label "beta" is not in task.labels' in outcome.stderr
    assert "rows.jsonl:2" in outcome.stderr


def test_a_table_without_the_columns_names_them(preview):
    outcome = preview([{"text": "a", "category": "b"}])
    assert outcome.code == 3
    assert "text-classification needs the columns text, label" in outcome.stderr
    assert "rename_columns" in outcome.stderr


def test_a_long_text_is_shortened_and_its_answer_stays(preview):
    rows = [{"text": "word " * 400, "label": "alpha"}, ROWS[1]]
    outcome = preview(rows, max_length=64)
    account = outcome.json["account"]
    assert (account["kept"], account["shortened"], account["dropped"]) == (2, 1, {})
    assert [text.split("<")[0] for text in find_learned(outcome)] == ["alpha", "beta"]
    assert len(outcome.json["rows"][0]["input_ids"]) in range(48, 65)


def test_an_answer_that_is_longer_than_the_row_is_dropped(preview):
    rows = [{"document": "a b c", "summary": "long " * 200}, {"document": "a", "summary": "b"}]
    outcome = preview(rows, task="summarization", max_length=64)
    assert outcome.json["account"]["dropped"] == {"overlong": 1}


def test_squad_files_are_flattened(preview, command, write_recipe, tmp_path):
    questions = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 3}]},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
    ]
    paragraph = {"context": "In Rome.", "qas": questions}
    document = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    (tmp_path / "squad.json").write_text(json.dumps(document, indent=1))
    datasets = [{"path": "squad.json", "format": "squad"}]
    recipe = write_recipe(
        task="question-answering", data={"datasets": datasets, "validation": None}
    )
    outcome = command("preview", recipe, "--format", "json")
    assert outcome.code == 0, outcome.stderr
    assert [text.split("<")[0] for text in find_learned(outcome)] == ["Rome", "unanswerable"]


def test_another_task_prepares_the_rows_again(command, write_recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"datasets": [{"path": "rows.jsonl"}], "validation": None}
    first = write_recipe(task="text-classification", data=data)
    assert command("prepare", first, "--json").json["hit"] is False
    assert command("prepare", first, "--json").json["hit"] is True
    prompt = {"kind": "text-classification", "prompt": "Say: {{ text }}"}
    assert command("prepare", write_recipe(task=prompt, data=data), "--json").json["hit"] is False


def test_a_prompt_that_never_ends_stops_and_names_the_prompt(preview):
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    outcome = preview(ROWS[:1], dataset={"prompt": {"user": endless}})
    assert outcome.code == 3
    assert "the prompt asks for too much work" in outcome.stderr
    assert "correct the prompt" in outcome.stderr
