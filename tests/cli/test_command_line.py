"""The command line: help, errors in three lines, and commands that start without torch."""

from __future__ import annotations

import json
import sys

import pytest

from tests.commands import run_process

FIND_HEAVY = """
import sys
from lora_sft.cli.app import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "numpy"}
print("HEAVY", sorted(heavy & set(sys.modules)), "CODE", code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["show", "--schema"], 0),
        (["recipes"], 0),
        (["train", "no-such-recipe.yaml"], 2),
        (["trian"], 2),
    ],
)
def test_help_and_recipe_errors_import_no_heavy_library(arguments, code):
    outcome = run_process(sys.executable, "-c", FIND_HEAVY, *arguments)
    assert outcome.stderr.strip().splitlines()[-1] == f"HEAVY [] CODE {code}"


def test_help_lists_commands_that_work(command):
    text = command("--help").stdout
    assert len(text.splitlines()) <= 40
    names = ("quickstart", "recipes", "show", "preview", "prepare", "train", "evaluate", "merge")
    for name in (*names, "chat"):
        assert command(name, "--help").code == 0
        assert name in text


def test_an_unknown_command_gives_an_error_with_the_nearest_name(command):
    outcome = command("trian", "x.yaml")
    assert outcome.code == 2
    lines = outcome.stderr.splitlines()
    assert [line[:6] for line in lines] == ["error:", "where:", "fix:  "]
    assert "train" in lines[0]


def test_the_option_local_rank_may_come_before_the_command(command, write_recipe, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command("--local_rank=0", "show", write_recipe(), "--json").code == 0


def test_show_prints_where_each_value_was_set(command, write_recipe):
    recipe = write_recipe()
    document = command("show", recipe, "train.max_steps=9", "--json").json
    assert document["recipe"]["train"]["max_steps"] == 9
    assert document["origins"]["train.max_steps"] == "command line"
    assert document["origins"]["adapter.r"].startswith(f"{recipe}:")
    assert document["origins"]["data.loss_on"] == "default"


def test_the_schema_is_one_json_document(command):
    assert "properties" in command("show", "--schema").json


@pytest.mark.parametrize(
    ("mistake", "code", "expected"),
    [
        ("broken line", 3, "train.jsonl:1017"),
        ("empty file", 3, "empty.jsonl"),
        ("missing column", 3, "table.csv"),
        ("no tokenizer", 4, "tokenizer"),
        ("misspelt target", 4, 'did you mean "v_proj"?'),
    ],
)
def test_bad_input_gives_a_three_line_error_and_starts_no_run(
    command, write_recipe, tmp_path, tiny_model, mistake, code, expected
):
    recipe, overrides = write_recipe(), []
    if mistake == "broken line":
        line = (tmp_path / "train.jsonl").read_text().splitlines()[0]
        lines = [line] * 1016 + ['{"messages": [', line]
        (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    elif mistake == "empty file":
        (tmp_path / "empty.jsonl").write_text("")
        overrides = [f"data.datasets.0.path={tmp_path / 'empty.jsonl'}"]
    elif mistake == "missing column":
        (tmp_path / "table.csv").write_text("question,answer\na,b\n")
        overrides = [f"data.datasets.0.path={tmp_path / 'table.csv'}"]
    elif mistake == "no tokenizer":
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in ("config.json", "model.safetensors"):
            (bare / name).write_bytes((tiny_model / name).read_bytes())
        overrides = [f"model.model_name_or_path={bare}"]
    else:
        overrides = ["adapter.target_modules=[q_proj, v_porj]"]
    outcome = command("train", recipe, *overrides)
    assert outcome.code == code
    lines = outcome.stderr.strip().splitlines()[-3:]
    assert [line[:6] for line in lines] == ["error:", "where:", "fix:  "]
    assert expected in "\n".join(lines)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "adapter").exists()


def test_evaluate_scores_the_base_and_the_adapter(command, write_recipe, tmp_path):
    assert command("train", write_recipe(train={"max_steps": 30, "learning_rate": 2e-2})).code == 0
    document = command("evaluate", tmp_path / "run", "--json").json
    assert document["split"] == "validation"
    assert document["rows"] > 0
    assert document["adapter"]["loss"] < document["base"]["loss"]
    assert set(document["adapter"]) == set(document["base"]) == {"loss", "exact_match"}


def test_evaluate_refuses_a_split_that_the_recipe_does_not_have(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    outcome = command("evaluate", tmp_path / "run", "--split", "test")
    assert outcome.code == 2
    assert "the recipe has no test split" in outcome.stderr


def test_a_merged_folder_gets_the_same_scores_as_its_run(command, write_recipe, tmp_path):
    assert command("train", write_recipe(train={"max_steps": 10, "learning_rate": 1e-2})).code == 0
    assert command("merge", tmp_path / "run", tmp_path / "merged").code == 0
    run = command("evaluate", tmp_path / "run", "--json").json
    recipe = tmp_path / "run" / "recipe.yaml"
    merged = command("evaluate", tmp_path / "merged", "--recipe", recipe, "--json").json
    assert merged["model"]["loss"] == pytest.approx(run["adapter"]["loss"], rel=1e-4)


def test_chat_gives_the_same_answers_for_a_run_and_its_merged_folder(
    command, write_recipe, tmp_path, monkeypatch
):
    assert command("train", write_recipe(train={"max_steps": 30, "learning_rate": 2e-2})).code == 0
    assert command("merge", tmp_path / "run", tmp_path / "merged").code == 0
    answers = []
    for model in ("run", "merged"):
        lines = iter(["Where is Oslo?", "/reset", "Where is Rome?", "/exit"])
        monkeypatch.setattr("builtins.input", lambda *_, lines=lines: next(lines))
        outcome = command("chat", tmp_path / model, "--max-new-tokens", "12")
        assert outcome.code == 0
        answers.append(outcome.stdout)
    assert answers[0] == answers[1]
    assert answers[0].strip()


def test_the_option_json_prints_only_the_document(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    outcome = command("merge", tmp_path / "run", tmp_path / "merged", "--json")
    assert json.loads(outcome.stdout)["correctness"]["passed"] is True
