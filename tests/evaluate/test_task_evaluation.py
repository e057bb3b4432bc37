"""A task is trained, evaluated, merged and evaluated again, from a table to its metrics."""

from __future__ import annotations

import json

import pytest

WORDS = ("alpha", "beta")
TABLES = {
    "text-classification": lambda n: {"text": f"say {WORDS[n % 2]}", "label": WORDS[n % 2]},
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
            "overlap": "drop",
        }
        return write_recipe(task=kind, data=data, **sections)

    return write


@pytest.mark.parametrize("kind", list(TABLES))
def test_every_kind_trains_evaluates_and_merges(command, write_task, tmp_path, kind):
    recipe = write_task(kind)
    data = "data.overlap=drop" if kind != "text-classification" else "data.duplicates=keep"
    if kind == "text-classification":  # its held-out rows repeat those of the training
        recipe = write_task(kind, count=24)
        rows = [{"text": f"tell {word}", "label": word} for word in WORDS]
        (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = command("train", recipe, data)
    assert trained.code == 0, trained.stderr
    outcome = command("evaluate", tmp_path / "run", "--split", "test", "--json")
    assert outcome.code == 0, outcome.stderr
    found = outcome.json
    assert (found["task"], found["form"]) == (kind, "generate")
    assert next(iter(found["adapter"].keys() - {"loss"})) is not None
    assert MAIN_METRICS[kind] in found["adapter"]
    assert set(found["unparseable"]) == {"base", "adapter"}
    if kind == "text-classification":
        merged = command("merge", tmp_path / "run", tmp_path / "merged")
        assert merged.code == 0, merged.stderr


def test_a_learned_task_is_scored_as_learned(command, write_task, tmp_path):
    recipe = write_task("text-classification")
    rows = [{"text": f"say {word}!", "label": word} for word in WORDS]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("train", recipe, "train.max_steps=60", "train.learning_rate=1e-2").code == 0
    found = command("evaluate", tmp_path / "run", "--split", "test", "--json").json
    assert found["adapter"]["accuracy"] == 1.0
    assert found["base"]["accuracy"] < 1.0
    assert found["unparseable"]["base"] == 2
    assert found["unparseable"]["adapter"] == 0
