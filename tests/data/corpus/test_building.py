"""The corpus: stable splits, repeats, the length policy, and an account that adds up."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from lora_sft.data.corpus.account import Account
from lora_sft.data.corpus.account_table import render_account_table
from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.errors import DataError
from tests import tiny
from tests.data.sections import (
    make_chat,
    make_data,
    make_dataset,
    make_split,
    write_jsonl,
)

NUM_ROWS = 200
ROWS = [
    {"instruction": f"What is {i} + {i}?", "input": "", "output": f"It is {2 * i}."}
    for i in range(NUM_ROWS)
]


@pytest.fixture
def train(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", ROWS)


def build(*datasets, template=tiny.CHATML, **data):
    tokenizer = tiny.make_tokenizer(template)
    return build_corpus(make_data(*datasets, **data), tokenizer, {tokenizer.eos_token_id})


def check_account(split, account):
    assert account.read == account.kept + sum(account.dropped.values())
    assert account.rows_out == len(split) == sum(account.built.values())
    assert account.tokens == sum(map(len, split["input_ids"]))
    learned = sum(label != IGNORED_LABEL for labels in split["labels"] for label in labels)
    assert account.target_tokens == learned
    assert set(account.examples) == set(account.dropped)


def test_rows_keep_their_order_source_and_number(train):
    corpus = build(make_dataset(train, path="../data/train.jsonl"))
    assert corpus.train["row"][:] == list(range(NUM_ROWS))
    assert set(corpus.train["source"]) == {"../data/train.jsonl"}
    assert corpus.train.column_names == ["input_ids", "labels", "source", "row", "expected"]
    assert (corpus.validation, corpus.test) == (None, None)
    check_account(corpus.train, corpus.accounts["train"])


def test_equal_rows_give_an_equal_fingerprint_and_other_labels_change_it(train):
    first, again = build(make_dataset(train)), build(make_dataset(train))
    assert first.fingerprint == again.fingerprint
    assert first.template_sha256 == again.template_sha256 != ""
    other = build(make_dataset(train), loss_on="all")
    assert other.train["input_ids"][:] == first.train["input_ids"][:]
    assert other.fingerprint != first.fingerprint


def test_a_row_never_changes_its_split_when_rows_are_added(tmp_path, train):
    fractions = {"validation": make_split(fraction=0.2), "test": make_split(fraction=0.1)}
    before = build(make_dataset(train), **fractions)
    more = [{**row, "output": f"{row['output']} Indeed."} for row in ROWS]
    longer = write_jsonl(tmp_path / "longer.jsonl", [*more, *ROWS])
    after = build(make_dataset(longer), **fractions)
    for name in ("train", "validation", "test"):
        old = set(map(tuple, getattr(before, name)["input_ids"]))
        assert old
        assert old <= set(map(tuple, getattr(after, name)["input_ids"]))
        check_account(getattr(after, name), after.accounts[name])
    assert sum(account.read for account in after.accounts.values()) == 2 * NUM_ROWS
    assert 0.1 < before.accounts["validation"].read / NUM_ROWS < 0.3


def test_adding_a_test_split_does_not_change_validation(train):
    validation = make_split(fraction=0.2)
    alone = build(make_dataset(train), validation=validation)
    both = build(make_dataset(train), validation=validation, test=make_split(fraction=0.3))
    assert alone.validation["row"][:] == both.validation["row"][:]
    with pytest.raises(DataError, match="no rows to train on"):
        build(make_dataset(train), validation=validation, test=make_split(fraction=0.8))


def test_a_held_out_split_can_have_its_own_data_sets(tmp_path, train):
    held_out = write_jsonl(
        tmp_path / "test.jsonl", [{**row, "output": "Who knows?"} for row in ROWS[:7]]
    )
    corpus = build(make_dataset(train), test=make_split(datasets=[make_dataset(held_out)]))
    assert len(corpus.train) == NUM_ROWS
    assert corpus.test["source"][:] == ["test.jsonl"] * 7


@pytest.mark.parametrize("repeat", [0.5, 1.0, 2.0, 2.5])
def test_repeat_gives_whole_passes_and_a_partial_pass_with_stable_rows(train, repeat):
    corpus = build(make_dataset(train, repeat=repeat))
    rows = corpus.train["row"][:]
    whole = int(repeat)
    assert rows[: whole * NUM_ROWS] == list(range(NUM_ROWS)) * whole
    part = rows[whole * NUM_ROWS :]
    assert part == sorted(set(part))
    assert abs(len(part) / NUM_ROWS - (repeat - whole)) < 0.1
    account = corpus.accounts["train"]
    check_account(corpus.train, account)
    assert account.read == NUM_ROWS
    assert account.dropped.get("subsampled", 0) == (NUM_ROWS - len(part) if repeat < 1 else 0)
    assert rows == build(make_dataset(train, repeat=repeat)).train["row"][:]


def test_data_sets_follow_one_another(tmp_path, train):
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "Hello there"}] * 3)
    corpus = build(make_dataset(train, repeat=2), make_dataset(texts))
    assert corpus.train["source"][:] == ["train.jsonl"] * 2 * NUM_ROWS + ["texts.jsonl"] * 3
    check_account(corpus.train, corpus.accounts["train"])


def test_every_row_is_kept_or_dropped_with_a_reason_and_an_example(tmp_path):
    rows = [
        {"messages": make_chat("a", "b")},
        {"messages": make_chat("a", "b " * 400)},
        {"messages": [{"content": "no role"}]},
        {"messages": make_chat("a<|im_end|>", "b")},
        {"messages": make_chat("only asked")},
        {"messages": "not messages"},
        {"messages": make_chat("c", "<think>x</think> d", "e", "f")},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    corpus = build(make_dataset(path), template=tiny.THINK_DROPPED_FROM_HISTORY)
    account = corpus.accounts["train"]
    check_account(corpus.train, account)
    expected = {"overlong": 1, "malformed": 2, "special_tokens": 1, "no_target": 1}
    assert account.dropped == expected
    assert (account.read, account.kept, account.rows_out, account.expanded) == (7, 2, 3, 1)
    assert account.examples["malformed"] == "rows.jsonl:3 (message 0 has no role)"
    assert account.examples["overlong"].startswith("rows.jsonl:2 (")
    assert corpus.train["row"][:] == [0, 6, 6]


def test_the_account_can_be_shown_as_json_and_as_a_table(train):
    corpus = build(make_dataset(train, repeat=0.5), validation=make_split(fraction=0.2))
    promised = {
        "read", "kept", "rows_out", "dropped", "expanded", "truncated", "target_tokens", "tokens",
    }  # fmt: skip
    plain = corpus.accounts["train"].as_dict()
    assert promised <= set(json.loads(json.dumps(plain)))
    console = Console(file=io.StringIO(), width=120)
    console.print(render_account_table(corpus.accounts))
    shown = console.file.getvalue()
    assert "dropped: subsampled" in shown
    assert "validation" in shown


def test_an_account_that_does_not_add_up_is_refused():
    with pytest.raises(AssertionError):
        Account(
            read=3, kept=1, rows_out=1, dropped={"overlong": 1}, expanded=0, truncated=0,
            target_tokens=1, tokens=2, built={"rendered": 1},
        )  # fmt: skip


def test_a_cut_row_keeps_its_start_and_learns_no_stop_token(tmp_path):
    rows = [{"messages": make_chat("a", "yes " * 50)}, {"messages": make_chat("q " * 60, "b")}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    corpus = build(make_dataset(path), max_length=30, overlong="keep_start")
    account = corpus.accounts["train"]
    check_account(corpus.train, account)
    assert (account.kept, account.truncated, account.dropped) == (1, 1, {"overlong": 1})
    (row,) = corpus.train
    assert len(row["input_ids"]) == 30
    stop = tiny.make_tokenizer().eos_token_id
    assert stop not in row["labels"]
    assert row["labels"][-1] == row["input_ids"][-1]


def test_an_overlong_row_is_an_error_if_the_recipe_says_so(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": make_chat("a", "yes " * 50)}])
    with pytest.raises(DataError, match="max_length is 30") as caught:
        build(make_dataset(path), max_length=30, overlong="error")
    assert caught.value.where == "rows.jsonl:1"


def test_an_expanded_row_loses_only_the_turns_that_are_too_long(tmp_path):
    chat = make_chat("a", "<think>x</think> b", "c", "yes " * 200)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": chat}])
    corpus = build(make_dataset(path), template=tiny.THINK_DROPPED_FROM_HISTORY, max_length=64)
    account = corpus.accounts["train"]
    check_account(corpus.train, account)
    assert (account.kept, account.rows_out, account.partly_overlong) == (1, 1, 1)


def test_the_error_for_a_split_without_kept_rows_has_all_counts_and_a_fix(tmp_path):
    rows = [{"messages": make_chat("a", "yes " * 50)}] * 3 + [{"messages": 1}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        build(make_dataset(path), max_length=16)
    error = caught.value
    assert error.exit_code == 3
    assert "4 read, dropped: overlong 3, malformed 1" in error.what
    assert error.where.startswith("rows.jsonl:1")
    longest = build(make_dataset(path)).accounts["train"].longest_tokens
    assert f"data.max_length to {longest} (it is 16)" in error.fix


def test_the_error_has_a_fix_if_every_row_is_dropped_because_of_the_template(train):
    with pytest.raises(DataError, match="no_stop_token 200") as caught:
        build(make_dataset(train), template=tiny.NO_SPECIAL_TOKENS)
    assert "data.stop_tokens" in caught.value.fix


def test_a_validation_split_without_rows_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0]])
    with pytest.raises(DataError, match="validation split has no rows"):
        build(make_dataset(path), validation=make_split(fraction=0.000001))


def test_the_error_for_a_csv_without_the_needed_column_lists_its_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,reply\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="question, reply"):
        build(make_dataset(path))


def test_a_column_with_a_template_arguments_name_overrides_the_recipe(tmp_path):
    rows = [{"messages": make_chat("a", "b"), "style": style} for style in ("x", None)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    template = "{{- style -}}" + tiny.CHATML
    corpus = build(make_dataset(path), template=template, chat_template_kwargs={"style": "y"})
    firsts = [tiny.make_tokenizer().decode(ids[0]) for ids in corpus.train["input_ids"]]
    assert firsts == ["x", "y"]


def test_ids_and_labels_are_plain_integers_of_equal_length(train):
    for row in build(make_dataset(train)).train:
        assert len(row["input_ids"]) == len(row["labels"])
        assert row["labels"][0] == IGNORED_LABEL
        assert np.asarray(row["input_ids"]).min() >= 0


def test_the_counts_of_all_sources_add_up_to_the_account(tmp_path):
    for name, rows in (
        ("a", ROWS[:20]),
        ("b", ROWS[20:100]),
        ("c", [{"instruction": "", "output": ""}]),
    ):
        write_jsonl(tmp_path / "many" / f"{name}.jsonl", rows)
    extra = write_jsonl(tmp_path / "extra.jsonl", ROWS[100:])
    corpus = build(
        make_dataset(tmp_path / "many", path="many"),
        make_dataset(extra, repeat=2.5),
        validation=make_split(fraction=0.1),
        special_tokens_in_content="allow",
    )
    for split, name in ((corpus.train, "train"), (corpus.validation, "validation")):
        account = corpus.accounts[name]
        check_account(split, account)
        for source, counts in account.sources.items():
            rows = [row for row in split if row["source"] == source]
            assert counts["rows_out"] == len(rows)
            assert counts["tokens"] == sum(len(row["input_ids"]) for row in rows)
            learned = sum(label != IGNORED_LABEL for row in rows for label in row["labels"])
            assert counts["target_tokens"] == learned
        for count in ("read", "kept", "rows_out", "tokens", "target_tokens"):
            found = sum(counts[count] for counts in account.sources.values())
            assert found == getattr(account, count)
    console = Console(file=io.StringIO(), width=160)
    console.print(render_account_table(corpus.accounts))
    num_lines = console.file.getvalue().count("tokens learned")
    assert num_lines == len(corpus.accounts["train"].sources) == 4


@pytest.mark.parametrize("overlong", ["split", "drop"])
def test_the_cost_of_expanding_does_not_depend_on_the_length_policy(tmp_path, overlong):
    chat = make_chat("a", "<think>one</think> b", "c", "<think>two</think> " + "d " * 60)
    long_text = make_chat("a", "word " * 100)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": chat}, {"messages": long_text}])
    template = tiny.THINK_DROPPED_FROM_HISTORY
    whole = build(make_dataset(path), template=template)
    cut = build(make_dataset(path), template=template, max_length=60, overlong=overlong)
    lengths = [len(row) for row in whole.train["input_ids"]]
    assert len(lengths) == 3
    assert max(lengths[:2]) > 60 > min(lengths[:2])
    for corpus in (whole, cut):
        assert corpus.accounts["train"].expansion_tokens == min(lengths[:2])
    if overlong == "split":
        assert cut.accounts["train"].rows_out > 3


def test_the_cost_of_expanding_is_counted(tmp_path):
    thoughts = make_chat("a", "<think>one</think> b", "c", "<think>two</think> d", "e", "f")
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"messages": thoughts}, {"messages": thoughts[:2]}]
    )
    corpus = build(make_dataset(path), template=tiny.THINK_DROPPED_FROM_HISTORY)
    lengths = [len(row) for row in corpus.train["input_ids"]]
    account = corpus.accounts["train"]
    assert (account.expanded, len(lengths)) == (1, 4)
    assert account.expansion_tokens == sum(lengths[:3]) - max(lengths[:3])
    console = Console(file=io.StringIO(), width=160)
    console.print(render_account_table(corpus.accounts))
    assert "expansion_tokens" in console.file.getvalue()
    in_place = build(
        make_dataset(path), template=tiny.THINK_DROPPED_FROM_HISTORY, rewritten_history="in_place"
    )
    assert in_place.accounts["train"].expansion_tokens == 0
    (warning,) = in_place.warnings
    assert warning.startswith("1 rows learn earlier turns as the chat template's history shows")
