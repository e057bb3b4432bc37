"""`lora-sft preview`: the JSON document, the page and the text show what training will learn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Outcome
from tests.conftest import make_rows, write_rows

ROW_KEYS = [
    *("source", "row", "line", "input_ids", "labels", "tokens"),
    *("built", "turns", "dropped"),
]
TURN_KEYS = ["role", "message", "start", "end", "text"]
ACCOUNT_KEYS = {
    *("read", "kept", "rows_out", "dropped", "expanded", "truncated", "target_tokens", "tokens"),
}
IGNORED = -100
HOSTILE = "<script>alert('pwned')</script> <img src=x onerror=alert(1)> & \x1b[31m red \u202e odd"
NUM_ROWS = 12
OVERLONG, UNANSWERED, SPECIAL_TOKENS, MALFORMED = 2, 4, 7, 9  # the dropped rows


def make_mixed_rows() -> list[dict[str, Any]]:
    """Return twelve rows. Training drops four of them, each for a different reason."""
    rows = make_rows(NUM_ROWS)
    rows[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    rows[1]["messages"] += [
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "content": "No."},
    ]
    rows[OVERLONG]["messages"][0]["content"] = "far too long " * 60
    del rows[UNANSWERED]["messages"][1]
    rows[SPECIAL_TOKENS]["messages"][0]["content"] = "Stop here: <|im_end|>"
    rows[MALFORMED]["messages"][0]["content"] = 17
    return rows


Previewed = Callable[..., Outcome]


@pytest.fixture
def preview(command, write_recipe, tmp_path) -> Previewed:
    """Return a function that runs `lora-sft preview` on the mixed rows."""

    def run(*arguments: object, **data: Any) -> Outcome:
        path = write_recipe(data={"validation": None, **data})
        write_rows(tmp_path / "train.jsonl", make_mixed_rows())
        return command("preview", path, *arguments)

    return run


def test_the_document_has_the_keys_of_the_contract(preview):
    document = preview("--format", "json").json
    assert list(document) == ["rows", "account", "tokenizer"]
    assert all(list(row) == ROW_KEYS for row in document["rows"])
    turns = [turn for row in document["rows"] for turn in row["turns"]]
    assert all(list(turn) == TURN_KEYS for turn in turns)
    assert set(document["account"]) >= ACCOUNT_KEYS
    assert list(document["tokenizer"]) == ["eos", "pad", "stop_tokens", "template_sha256"]
    assert document["tokenizer"]["eos"] == "<|im_end|>"
    assert document["tokenizer"]["pad"] == "<pad>"
    assert "<|im_end|>" in document["tokenizer"]["stop_tokens"]
    assert re.fullmatch("[0-9a-f]{64}", document["tokenizer"]["template_sha256"])
    assert len(turns) == 9


def test_the_labels_and_the_texts_match_the_turns(preview, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [row for row in preview("--format", "json").json["rows"] if row["dropped"] is None]
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        learned = {at for turn in row["turns"] for at in range(turn["start"], turn["end"])}
        assert labels[0] == IGNORED
        assert labels == [each if at in learned else IGNORED for at, each in enumerate(ids)]
        assert row["tokens"] == tokenizer.convert_ids_to_tokens(ids)
        for turn in row["turns"]:
            assert turn["text"] == tokenizer.decode(ids[turn["start"] : turn["end"]])
            assert turn["text"].endswith("<|im_end|>")
    assert len(rows) == NUM_ROWS - 4
    assert [turn["message"] for turn in rows[0]["turns"]] == [2]  # after system and user
    assert [turn["message"] for turn in rows[1]["turns"]] == [1, 3]


def test_dropped_rows_keep_their_order_and_the_counts_add_up(preview):
    document = preview("--format", "json").json
    rows, account = document["rows"], document["account"]
    assert [row["row"] for row in rows] == list(range(NUM_ROWS))
    assert [row["line"] for row in rows] == list(range(1, NUM_ROWS + 1))
    assert {row["source"] for row in rows} == {"train.jsonl"}
    dropped = {row["row"]: row["dropped"] for row in rows if row["dropped"]}
    assert dropped == {
        OVERLONG: "overlong",
        UNANSWERED: "no_target",
        SPECIAL_TOKENS: "special_tokens",
        MALFORMED: "malformed",
    }
    assert all(row["input_ids"] == [] and row["turns"] == [] for row in rows if row["dropped"])
    assert account["read"] == NUM_ROWS == account["kept"] + sum(account["dropped"].values())
    assert account["dropped"] == dict.fromkeys(dropped.values(), 1)
    assert account["tokens"] == sum(len(row["input_ids"]) for row in rows)
    learned = sum(label != IGNORED for row in rows for label in row["labels"])
    assert account["target_tokens"] == learned


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_preview_shows_the_rows_of_training(command, write_recipe, split):
    from lora_sft.data.corpus.loading import load_data
    from lora_sft.recipe import read_recipe

    fractions = {"validation": {"fraction": 0.25}, "test": {"fraction": 0.25}, "max_length": 30}
    path = write_recipe(data={**fractions, "overlong": "keep_start"})
    document = command("preview", path, "--split", split, "--format", "json").json
    _, corpus = load_data(read_recipe(path))
    trained = getattr(corpus, split).remove_columns("expected").to_list()
    kept = [row for row in document["rows"] if row["dropped"] is None]
    assert [{name: row[name] for name in trained[0]} for row in kept] == trained
    assert document["account"] == corpus.accounts[split].as_dict()
    assert len(trained) >= 4


def test_a_split_with_its_own_data_shows_only_that_data(command, write_recipe, tmp_path):
    write_rows(tmp_path / "held_out.jsonl", make_rows(51)[48:])
    path = write_recipe(data={"validation": {"datasets": [{"path": "held_out.jsonl"}]}})
    document = command("preview", path, "--split", "validation", "--format", "json").json
    assert [(row["source"], row["row"]) for row in document["rows"]] == [
        ("held_out.jsonl", index) for index in range(3)
    ]
    assert document["account"]["read"] == 3
    trained = command("preview", path, "--format", "json").json
    assert len(trained["rows"]) == 48
    assert {row["source"] for row in trained["rows"]} == {"train.jsonl"}


def test_a_repeated_row_is_shown_once_and_counted_each_time(preview):
    repeated = [{"path": "train.jsonl", "repeat": 2}]
    document = preview("--format", "json", datasets=repeated).json
    assert len(document["rows"]) == NUM_ROWS
    assert document["account"]["rows_out"] == 2 * (NUM_ROWS - 4)


def test_the_option_rows_changes_the_shown_rows_but_not_the_counts(preview):
    document = preview("--format", "json", "--rows", "3").json
    assert [row["row"] for row in document["rows"]] == [0, 1, 2]
    assert document["account"]["read"] == NUM_ROWS


def test_the_option_row_shows_one_row(preview):
    document = preview("--row", "5", "--format", "json").json
    assert [row["row"] for row in document["rows"]] == [5]
    assert document["account"]["read"] == NUM_ROWS
    text = preview("--row", "5").stdout
    assert "message 1 (assistant)" in text
    assert "position" in text


def test_for_a_row_of_another_split_the_error_names_that_split(command, write_recipe):
    path = write_recipe()
    document = command("preview", path, "--split", "validation", "--format", "json").json
    row = document["rows"][0]["row"]
    outcome = command("preview", path, "--row", row)
    assert outcome.code == 3
    assert "add --split validation" in outcome.stderr
    assert command("preview", path, "--row", "48").code == 3
    assert [line[:6] for line in outcome.stderr.splitlines()] == ["error:", "where:", "fix:  "]


def test_overrides_change_what_is_shown(preview):
    document = preview("data.overlong=keep_start", "--format", "json").json
    cut = document["rows"][OVERLONG]
    assert cut["dropped"] in (None, "overlong")
    # The cut removes every learned token, so the row is dropped all the same.
    assert document["account"]["dropped"].get("overlong", 0) == 1
    all_learned = preview("data.loss_on=all", "--rows", "1", "--format", "json").json["rows"][0]
    assert all_learned["turns"][0] == {
        **all_learned["turns"][0],
        **{"role": "text", "message": None, "start": 1, "end": len(all_learned["input_ids"])},
    }


def test_the_text_marks_learned_tokens_and_names_dropped_rows(preview):
    outcome = preview("--rows", str(NUM_ROWS))
    assert outcome.code == 0
    assert "<|im_start|>assistant↵\n⟦Paris is number 0.<|im_end|>⟧↵" in outcome.stdout
    assert "train.jsonl:3  row 2  dropped: overlong" in outcome.stdout
    assert "fix: set data.max_length to" in outcome.stdout
    assert "stop tokens <|im_end|>" in outcome.stdout
    assert "\x1b" not in outcome.stdout
    assert "\u202e" not in outcome.stdout
    assert "␛[31m red" in outcome.stdout


def test_the_text_shows_three_rows_by_default(preview):
    text = preview().stdout
    assert "3 of 12 rows shown" in text
    assert "train.jsonl:3" in text
    assert "train.jsonl:6" not in text


def test_the_option_out_prints_nothing_and_writes_a_complete_file(preview, tmp_path):
    outcome = preview("--format", "json", "--out", tmp_path / "rows.json")
    assert outcome.stdout == ""
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == NUM_ROWS
    assert not list(tmp_path.glob(".*staged"))


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_the_option_out_writes_the_text_that_would_be_printed(preview, tmp_path, form):
    file = tmp_path / "out"
    assert preview("--format", form, "--out", file).code == 0
    if form != "text":  # a file has a fixed width, a terminal its own
        assert file.read_text() == preview("--format", form).stdout
    assert "Paris" in file.read_text()


@pytest.mark.parametrize("wrong", ["no folder", "a folder", "no split", "both", "below"])
def test_a_wrong_option_gives_a_three_line_error(preview, tmp_path, wrong):
    arguments = {
        "no folder": ("--out", tmp_path / "nowhere" / "page.html"),
        "a folder": ("--out", tmp_path),
        "no split": ("--split", "test"),
        "both": ("--rows", "1", "--row", "1"),
        "below": ("--row=-1",),
    }[wrong]
    outcome = preview(*arguments)
    assert outcome.code == 2
    assert [line[:6] for line in outcome.stderr.splitlines()] == ["error:", "where:", "fix:  "]


def test_a_split_is_shown_even_if_every_row_is_dropped(preview):
    document = preview("data.max_length=2", "--format", "json").json
    assert document["account"]["kept"] == 0
    assert len(document["rows"]) == NUM_ROWS


def test_the_page_loads_no_other_file_and_runs_no_code_from_the_rows(preview, tmp_path):
    page = tmp_path / "page.html"
    assert preview("--format", "html", "--out", page).code == 0
    text = page.read_text()
    assert not re.findall(r"https?:|//cdn|@import|url\(|<link|<iframe|\bsrc=", _without_data(text))
    assert "default-src 'none'" in text
    assert "alert(" not in _without_data(text)
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert "\x1b" not in text


def test_the_page_holds_the_rows_and_the_reasons_of_drops(preview, tmp_path):
    page = tmp_path / "page.html"
    assert preview("--format", "html", "--out", page).code == 0
    data = read_page_data(page)
    shown = preview("--format", "json").json
    assert [row.get("ids", []) for row in data["rows"]] == [r["input_ids"] for r in shown["rows"]]
    assert [row.get("dropped") for row in data["rows"]] == [r["dropped"] for r in shown["rows"]]
    # An overlong row has a length. The other three dropped rows have none.
    assert sum(count for _, count in data["lengths"]) == NUM_ROWS - 3
    hostile = data["rows"][1]
    text = "".join(
        hostile["odd"].get(str(at), data["tokens"][str(each)][1])
        for at, each in enumerate(hostile["ids"])
    )
    assert "<script>alert('pwned')</script>" in text


def test_the_page_also_shows_dropped_rows_after_its_first_rows(preview, tmp_path, monkeypatch):
    from lora_sft.cli import preview as command_file

    monkeypatch.setitem(command_file.DEFAULT_ROWS, "html", 2)
    page = tmp_path / "page.html"
    assert preview("--format", "html", "--out", page).code == 0
    rows = [row["row"] for row in read_page_data(page)["rows"]]
    assert rows == [0, 1, OVERLONG, UNANSWERED, SPECIAL_TOKENS, MALFORMED]
    assert "2 of 12 rows are on this page, followed by 4 dropped rows" in page.read_text()
    assert preview("--format", "html", "--rows", "2", "--out", page).code == 0
    assert len(read_page_data(page)["rows"]) == 2


PAGE_DATA = re.compile(r'(<script type="application/json" id="data">)(.*?)(</script>)', re.DOTALL)


def _without_data(page: str) -> str:
    assert PAGE_DATA.search(page)
    return PAGE_DATA.sub(r"\1\3", page)


def read_page_data(page: Path) -> dict[str, Any]:
    found = PAGE_DATA.search(page.read_text())
    assert found
    return json.loads(found[2])
