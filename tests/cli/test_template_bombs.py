"""Every command that renders a template stops at a bomb, with exit code 3 and three lines."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from lora_sft.data.corpus import parallel_batches, source_row_following
from tests.conftest import make_rows, write_rows
from tests.data.templates.template_bombs import BOMBS
from tests.tiny import CHATML

# The bomb is only for a row that has this word. The test messages of lora-sft do not have it.
WORD = "Sesame"


def check_error(outcome, where):
    assert outcome.code == 3
    what, place, fix = outcome.stderr.strip().splitlines()[-3:]
    assert what.startswith("error: the chat template asks for too much work")
    assert place == f"where: {where}"
    assert fix.startswith("fix:   correct the template")
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("name", ["nested loops", "doubling with ~", "a text of 100 TB"])
def test_prepare_names_the_file_of_a_bomb(command, write_recipe, tmp_path, name):
    (tmp_path / "bomb.jinja").write_text("\n" + BOMBS[name])
    recipe = write_recipe(data={"chat_template": "bomb.jinja"})
    check_error(command("prepare", recipe), "data.chat_template: bomb.jinja, line 2")


def test_a_command_names_the_tokenizer_of_a_bomb(command, write_recipe, tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = BOMBS["nested loops"]
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe = write_recipe(tokenizer={"path": str(tmp_path / "tokenizer")})
    where = f"the tokenizer's own template: {tmp_path / 'tokenizer'}, line 1"
    for name in ("preview", "train"):
        check_error(command(name, recipe), where)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_bomb_for_one_row_is_no_dropped_row(
    command, write_recipe, tmp_path, monkeypatch, processes
):
    monkeypatch.setenv("LORA_SFT_PROCESSES", processes)
    monkeypatch.setattr(source_row_following, "BATCH_ROWS", 7)
    monkeypatch.setattr(parallel_batches, "BATCHES_DONE_HERE", 1)
    bomb = f"{{% if '{WORD}' in messages[0].content %}}{BOMBS['doubling with ~']}{{% endif %}}"
    (tmp_path / "bomb.jinja").write_text(bomb + CHATML)
    recipe = write_recipe(data={"chat_template": "bomb.jinja"})
    assert command("prepare", recipe).code == 0
    rows = make_rows(48)
    rows[40]["messages"][0]["content"] = WORD
    write_rows(tmp_path / "train.jsonl", rows)
    check_error(command("prepare", recipe), "data.chat_template: bomb.jinja, line 1")


def test_a_long_template_is_refused(command, write_recipe, tmp_path):
    (tmp_path / "bomb.jinja").write_text("{{ x }}" * 50_000)
    recipe = write_recipe(data={"chat_template": "bomb.jinja"})
    check_error(command("prepare", recipe), "data.chat_template: bomb.jinja")


def test_a_merge_stops_at_a_bomb(command, write_recipe, tmp_path):
    recipe = write_recipe()
    assert command("train", recipe).code == 0
    adapter = tmp_path / "run" / "adapter"
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    (adapter / "chat_template.jinja").write_text(BOMBS["nested loops"])
    outcome = command("merge", adapter, tmp_path / "merged")
    check_error(outcome, f"the tokenizer's own template: {adapter}, line 1")
    assert not (tmp_path / "merged").exists()
