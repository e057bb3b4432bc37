"""A task that a recipe cannot have is refused with the line to write."""

from __future__ import annotations

import pytest

CLASSIFY = "text-classification"


@pytest.mark.parametrize(
    ("sections", "what", "fix"),
    [
        ({"task": "classification"}, "task.kind must be", "task.kind: text-classification"),
        ({"task": {"kind": "summarization", "labels": ["a", "b"]}}, "no effect", CLASSIFY),
        ({"task": {"kind": CLASSIFY, "label_separator": ";"}}, "needs multi_label", "true"),
        ({"task": {"kind": CLASSIFY, "labels": ["a", "a"]}}, "more than once", "once"),
        ({"task": {"kind": CLASSIFY, "labels": ["a"]}}, "at least two", "delete"),
        ({"task": {"kind": CLASSIFY, "form": "head"}}, "task.form must be", "generate"),
        ({"data": {"overlong": "shorten"}}, "has no task", "data.overlong: drop"),
        (
            {"data": {"datasets": [{"path": "train.jsonl", "format": "table"}]}},
            "needs a task",
            "task:",
        ),
        (
            {
                "task": CLASSIFY,
                "data": {"datasets": [{"path": "train.jsonl", "format": "messages"}]},
            },
            "holds chats",
            "format: table",
        ),
        (
            {"data": {"datasets": [{"path": "train.jsonl", "prompt": {"user": "{{ a }}"}}]}},
            "no assistant",
            "prompt.assistant",
        ),
        ({"task": CLASSIFY, "evaluate": {"metrics": ["bleu"]}}, "unknown metric", "[accuracy]"),
    ],
)
def test_it_is_refused(command, write_recipe, sections, what, fix):
    outcome = command("show", write_recipe(**sections))
    assert outcome.code == 2
    assert what in outcome.stderr
    assert fix in outcome.stderr


def test_the_defaults_of_a_task_are_shown_with_their_origin(command, write_recipe):
    shown = command("show", write_recipe(task=CLASSIFY), "--json").json
    assert shown["recipe"]["data"]["overlong"] == "shorten"
    assert shown["recipe"]["evaluate"]["metrics"][0] == "accuracy"
    assert shown["origins"]["data.overlong"] == "task"
    assert shown["origins"]["evaluate.metrics"] == "task"
    assert "recipe.yaml" in shown["origins"]["task.kind"]
