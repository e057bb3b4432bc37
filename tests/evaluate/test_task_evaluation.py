"""A task is trained and evaluated, from a table to its metrics."""

from __future__ import annotations

import json

import pytest

from lora_sft.evaluate.task_scores import collect_labels, score_texts
from lora_sft.recipe import TaskSection
from lora_sft.tasks.table import KINDS

WORDS = ("alpha", "beta")
TABLES = {
    "text-classification": lambda n: {"text": f"{WORDS[n % 2]} {n}", "label": WORDS[n % 2]},
    "question-answering": lambda n: {
        "question": f"Which, {n}?",
        "context": f"It is {WORDS[n % 2]}.",
        "answers": {"text": [WORDS[n % 2]], "answer_start": [6]},
    },
    "translation": lambda n: {"source": f"one {n}", "target": f"eins {n}"},
    "summarization": lambda n: {"document": f"a b c {n}", "summary": f"abc {n}"},
    "extraction": lambda n: {"text": f"n={n}", "json": {"n": n}},
}
MAIN_METRICS = {
    "text-classification": "accuracy",
    "question-answering": "f1",
    "translation": "bleu",
    "summarization": "rougeL",
    "extraction": "exact_match",
}


@pytest.fixture
def write_task(write_recipe, tmp_path):
    def write(kind, count=24, **sections):
        for name, start in (("rows", 0), ("held_out", 100)):
            rows = [TABLES[kind](start + n) for n in range(count if name == "rows" else 6)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        data = {
            "datasets": [{"path": "rows.jsonl"}],
            "validation": None,
            "test": {"datasets": [{"path": "held_out.jsonl"}]},
        }
        return write_recipe(task=kind, data=data, **sections)

    return write


@pytest.mark.parametrize("kind", list(TABLES))
def test_every_kind_trains_and_is_evaluated(command, write_task, tmp_path, kind):
    trained = command("train", write_task(kind))
    assert trained.code == 0, trained.stderr
    outcome = command("evaluate", tmp_path / "run", "--split", "test", "--json")
    assert outcome.code == 0, outcome.stderr
    found = outcome.json
    assert (found["task"], found["form"]) == (kind, "generate")
    assert MAIN_METRICS[kind] in found["adapter"]
    assert set(found["unparseable"]) == {"base", "adapter"}


def test_a_learned_task_is_scored_as_learned(command, write_task, tmp_path):
    model = {"model_name_or_path": "lora_sft://quickstart/base", "dtype": "float32"}
    recipe = write_task("text-classification", model=model)
    changes = ["adapter.r=16", "train.max_steps=40", "train.learning_rate=1e-2"]
    assert command("train", recipe, *changes, "train.save_strategy=no").code == 0
    found = command("evaluate", tmp_path / "run", "--split", "test", "--json").json
    assert found["adapter"]["accuracy"] == 1.0
    assert found["base"]["accuracy"] == 0.0
    assert found["unparseable"] == {"base": 6, "adapter": 0}


def test_several_labels_are_scored_by_their_own_metrics(command, write_task, tmp_path):
    recipe = write_task("text-classification")
    for name in ("rows", "held_out"):
        rows = [
            {"text": f"{name} {n}", "label": [WORDS[n % 2], "gamma"] if n % 3 else []}
            for n in range(12)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    assert command("train", recipe, "task.multi_label=true").code == 0
    outcome = command("evaluate", tmp_path / "run", "--split", "test", "--json")
    assert outcome.code == 0, outcome.stderr
    assert list(outcome.json["adapter"])[1] == "f1_micro"
    assert "subset_accuracy" in outcome.json["adapter"]


def test_labels_that_the_recipe_writes_as_numbers_are_scored():
    task = TaskSection(kind="text-classification", labels=[2, 1])
    kind = KINDS[task.kind]
    task = collect_labels(kind, task, [])
    scores = score_texts(kind, task, ["accuracy", "f1_macro"], ["1", "2", "3"], ['["1"]'] * 3)
    assert scores.metrics["accuracy"] == pytest.approx(1 / 3)
    assert scores.metrics["f1_macro"] == pytest.approx(0.25)  # 0.5 for label 1, 0 for label 2
    assert scores.unparseable == 1
