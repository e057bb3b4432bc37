"""Splits: groups stay together, overlaps between splits are found, duplicates are counted."""

import pytest

from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.corpus.example_hash import ExampleHasher
from lora_sft.data.examples.row_formats import read_openai_row
from lora_sft.data.rows.row_sources import read_rows
from lora_sft.data.templates.template_keys import TemplateKeys
from lora_sft.errors import DataError
from tests import tiny
from tests.data.labels.test_template_oracle import load_family
from tests.data.sections import make_chat, make_data, make_dataset, make_split, write_jsonl


def make_row(index, **columns):
    return {"messages": make_chat(f"What is {index}?", f"It is {index}."), **columns}


def build(*datasets, **data):
    tokenizer = tiny.make_tokenizer()
    return build_corpus(make_data(*datasets, **data), tokenizer, {tokenizer.eos_token_id})


def write(tmp_path, name, rows):
    return make_dataset(write_jsonl(tmp_path / name, rows))


GROUPED = [make_row(index, conversation=index // 5) for index in range(200)]


def find_groups(split):
    return {row // 5 for row in split["row"]}


def test_rows_of_one_group_share_a_split(tmp_path):
    grouped = {"group_by": "conversation"}
    corpus = build(
        write(tmp_path, "rows.jsonl", GROUPED),
        validation=make_split(fraction=0.3, **grouped),
        test=make_split(fraction=0.3, **grouped),
    )
    splits = [find_groups(split) for split in (corpus.train, corpus.validation, corpus.test)]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits)) == 40
    alone = build(
        write(tmp_path, "rows.jsonl", GROUPED), validation=make_split(fraction=0.3, **grouped)
    )
    assert alone.validation["row"][:] == corpus.validation["row"][:]


def test_a_group_is_the_same_as_a_number_and_as_a_text_and_in_any_row_order(tmp_path):
    validation = make_split(fraction=0.3, group_by="conversation")
    as_text = [{**row, "conversation": str(row["conversation"])} for row in GROUPED]
    first = build(write(tmp_path, "a.jsonl", GROUPED), validation=validation)
    other = build(write(tmp_path, "b.jsonl", as_text[::-1]), validation=validation)
    assert find_groups(first.validation) == {(199 - row) // 5 for row in other.validation["row"]}


def test_a_repeat_below_one_selects_single_rows_and_not_groups(tmp_path):
    dataset = make_dataset(write_jsonl(tmp_path / "a.jsonl", GROUPED), repeat=0.5)
    corpus = build(dataset, validation=make_split(fraction=0.2, group_by="conversation"))
    groups = find_groups(corpus.train)
    assert len(groups) > len(corpus.train) / 4
    assert not groups & find_groups(corpus.validation)


def test_the_error_for_a_row_without_its_group_names_the_row(tmp_path):
    rows = [*GROUPED[:3], make_row(3)]
    with pytest.raises(DataError, match='no "conversation" to group by') as caught:
        build(
            write(tmp_path, "a.jsonl", rows),
            validation=make_split(fraction=0.3, group_by="conversation"),
        )
    assert caught.value.where == "a.jsonl:4"
    assert "messages" in caught.value.fix


def test_a_held_out_split_with_its_own_data_set_needs_no_group(tmp_path):
    own = make_split(datasets=[write(tmp_path, "test.jsonl", [make_row(500)])])
    grouped = make_split(fraction=0.3, group_by="conversation")
    corpus = build(write(tmp_path, "a.jsonl", GROUPED), validation=grouped, test=own)
    assert len(corpus.test) == 1


def test_a_row_in_two_splits_is_an_error_that_names_both(tmp_path):
    train = write(tmp_path, "train.jsonl", [make_row(index, id=index) for index in range(10)])
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [make_row(50), make_row(7, id="x")])])
    with pytest.raises(DataError, match="in two splits, train and test") as caught:
        build(train, test=test)
    assert caught.value.where == "train.jsonl:8 and test.jsonl:2"
    assert "data.overlap: drop" in caught.value.fix


def test_the_same_example_in_another_format_overlaps_too(tmp_path):
    alpaca = {"instruction": "What is 7?", "output": "It is 7."}
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [alpaca])])
    with pytest.raises(DataError, match="in two splits"):
        build(write(tmp_path, "train.jsonl", [make_row(7)]), test=test)


def test_overlap_drop_keeps_an_example_in_test_before_validation_before_train(tmp_path):
    train = write(tmp_path, "train.jsonl", [make_row(index) for index in range(10)])
    validation = write(tmp_path, "validation.jsonl", [make_row(3), make_row(4), make_row(50)])
    test = write(tmp_path, "test.jsonl", [make_row(4), make_row(5)])
    held_out = {
        "validation": make_split(datasets=[validation]),
        "test": make_split(datasets=[test]),
    }
    corpus = build(train, overlap="drop", **held_out)
    assert [len(corpus.train), len(corpus.validation), len(corpus.test)] == [7, 2, 2]
    assert corpus.accounts["train"].dropped == {"overlap": 3}
    example = corpus.accounts["train"].examples["overlap"]
    assert example == "train.jsonl:4 (validation has the same example: validation.jsonl:1)"
    assert corpus.accounts["validation"].dropped == {"overlap": 1}
    with pytest.raises(DataError, match="in two splits"):
        build(train, **held_out)


def test_a_dropped_held_out_row_overlaps_but_a_dropped_training_row_does_not(tmp_path):
    unread = {"role": "assistant", "content": "4", "reasoning_content": "hmm"}
    lost = {"messages": [*make_chat("q"), unread]}  # CHATML does not render the field
    said = {"messages": make_chat("q", "<think>hmm</think>4")}
    rows = {"lost": [lost, make_row(1)], "said": [said, make_row(2)]}
    lost, said = (write(tmp_path, f"{name}.jsonl", each) for name, each in rows.items())
    with pytest.raises(DataError, match="in two splits, train and test"):
        build(said, test=make_split(datasets=[lost]))
    corpus = build(lost, test=make_split(datasets=[said]))
    assert corpus.accounts["train"].dropped == {"content_lost": 1}


def test_a_row_held_out_by_a_fraction_overlaps_with_a_test_data_set(tmp_path):
    rows = [make_row(index) for index in range(40)]
    train, fraction = write(tmp_path, "train.jsonl", rows), make_split(fraction=0.3)
    held_out = build(train, validation=fraction).validation["row"][0]
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [rows[held_out]])])
    with pytest.raises(DataError, match="two splits, validation and test"):
        build(train, validation=fraction, test=test)


@pytest.mark.parametrize(("duplicates", "kept"), [("keep", 6), ("drop", 4)])
def test_duplicates_are_kept_or_dropped_and_counted(tmp_path, duplicates, kept):
    first = write(tmp_path, "a.jsonl", [make_row(1), make_row(2), make_row(1, id=5), make_row(3)])
    second = write(tmp_path, "b.jsonl", [make_row(2), make_row(4)])
    corpus = build(first, second, duplicates=duplicates)
    account = corpus.accounts["train"]
    assert len(corpus.train) == account.kept == kept
    assert account.read == 6
    if duplicates == "drop":
        assert account.dropped == {"duplicate": 2}
        assert account.examples["duplicate"] == "a.jsonl:3 (the same as a.jsonl:1)"
        assert corpus.fingerprint == build(first, second, duplicates="drop").fingerprint


def test_a_file_that_two_data_sets_read_gives_duplicates(tmp_path):
    named = write(tmp_path, "a.jsonl", [make_row(1), make_row(2)])
    found = make_dataset(tmp_path / "*.jsonl")
    account = build(named, found, duplicates="drop").accounts["train"]
    assert (account.kept, account.dropped) == (2, {"duplicate": 2})


def in_messages(row, **columns):
    """Return the row with these columns in each of its messages."""
    return {"messages": [{**message, **columns} for message in row["messages"]]}


SAME = [
    lambda index: make_row(index, id=f"x{index}"),
    lambda index: {"instruction": f"What is {index}?", "output": f"It is {index}."},
    lambda index: in_messages(make_row(index), id=index, name=None),
    lambda index: in_messages(make_row(index), train=True),
    lambda index: in_messages(make_row(index), weight=1),
]


@pytest.mark.parametrize("make_same", SAME)
def test_an_example_in_another_notation_is_in_the_same_split(tmp_path, make_same):
    indices = range(60)
    first = write(tmp_path, "a.jsonl", [make_row(index) for index in indices])
    other = write(tmp_path, "b.jsonl", [make_same(index) for index in indices])
    corpus = build(first, other, validation=make_split(fraction=0.3))
    assert 2 < len(corpus.validation) < 118
    for split in (corpus.train, corpus.validation):
        places = sorted(zip(split["source"], split["row"], strict=True))
        half = len(places) // 2
        assert [row for _, row in places[:half]] == [row for _, row in places[half:]]


@pytest.mark.parametrize("make_same", SAME)
def test_a_held_out_example_in_another_notation_overlaps(tmp_path, make_same):
    train = write(tmp_path, "train.jsonl", [make_row(index) for index in range(3)])
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [make_same(1)])])
    with pytest.raises(DataError, match="in two splits, train and test"):
        build(train, test=test)


def test_rows_are_equal_if_only_an_id_or_an_empty_key_differs(tmp_path):
    rows = [make_row(1), in_messages(make_row(1), id="m1"), in_messages(make_row(1), name="")]
    tokenizer = tiny.make_tokenizer("{# message.name, item.id #}" + tiny.CHATML)
    data = make_data(write(tmp_path, "a.jsonl", rows), duplicates="drop")
    assert build_corpus(data, tokenizer, {tokenizer.eos_token_id}).train["row"][:] == [0]


def test_a_key_of_several_words_counts_as_read_if_the_template_has_the_whole_key():
    keys = TemplateKeys("{{ message['finish-reason'] }} {{ unfinish-reasons }}")
    read = [key for key in ("finish-reason", "finish-reasons", "sh-reason") if keys.is_read(key)]
    assert read == ["finish-reason"]


def test_rows_differ_if_a_key_differs_that_the_template_reads(tmp_path):
    rows = [make_row(1), in_messages(make_row(1), name="Ann"), in_messages(make_row(1), nick="An")]
    dataset = write(tmp_path, "a.jsonl", rows)
    assert len(build(dataset, duplicates="drop").train) == 1
    tokenizer = tiny.make_tokenizer("{# message.name, nickname #}" + tiny.CHATML)
    data = make_data(dataset, duplicates="drop")
    corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
    assert corpus.train["row"][:] == [0, 1]


def test_calls_are_equal_in_both_forms_and_differ_by_their_arguments(tmp_path):
    def ask(call):
        question = {"role": "user", "content": "Go."}
        return {"messages": [question, {"role": "assistant", "tool_calls": [call]}]}

    nested = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"x": 1}'}}
    flat = {"name": "f", "arguments": {"x": 1}}
    other = {"name": "f", "arguments": {"x": 2}}
    dataset = write(tmp_path, "a.jsonl", [ask(nested), ask(flat), ask(other)])
    with_template = "{%- for call in [] -%}{{ call.id }}{{ call.function }}{%- endfor -%}"
    hasher = ExampleHasher(TemplateKeys(with_template), {})
    examples = [read_openai_row(row.values) for row in read_rows(dataset)]
    content_hashes = [hasher.hash_content(example) for example in examples]
    assert content_hashes[0] == content_hashes[1] != content_hashes[2]
    hashes = map(hasher.hash_example, examples, content_hashes)
    first, second, third = hashes
    assert first == second != third


def test_equal_examples_in_groups_of_different_splits_overlap(tmp_path):
    rows = [make_row(7, group=group) for group in range(40)]
    rows += [make_row(100 + group, group=group) for group in range(40)]
    dataset, grouped = write(tmp_path, "a.jsonl", rows), {"fraction": 0.2, "group_by": "group"}
    with pytest.raises(DataError, match=r"in two splits, train and (validation|test)"):
        build(dataset, validation=make_split(**grouped))
    corpus = build(
        dataset, validation=make_split(**grouped), test=make_split(**grouped), overlap="drop"
    )
    found = {
        name: sum(row < 40 for row in getattr(corpus, name)["row"])
        for name in ("train", "validation", "test")
    }
    assert found["train"] == found["validation"] == 0
    assert found["test"] > 0
    assert corpus.accounts["train"].dropped["overlap"] > 0
    assert sum(len(split) for split in (corpus.train, corpus.validation, corpus.test)) == (
        40 + found["test"]
    )


def test_a_row_of_the_test_fraction_stays_there_if_validation_data_has_it_too(tmp_path):
    rows = [make_row(index) for index in range(40)]
    train, fraction = write(tmp_path, "train.jsonl", rows), make_split(fraction=0.3)
    test_rows = build(train, test=fraction).test["row"]
    own = write(tmp_path, "validation.jsonl", [rows[test_rows[0]], make_row(99)])
    corpus = build(train, test=fraction, validation=make_split(datasets=[own]), overlap="drop")
    assert len(corpus.test) == len(test_rows)
    assert corpus.accounts["validation"].dropped == {"overlap": 1}


def test_malformed_rows_are_divided_between_splits_and_are_never_duplicates(tmp_path):
    odd = [{"messages": f"not a chat {index}"} for index in range(40)]
    dataset = write(tmp_path, "a.jsonl", [make_row(1), *odd, *(make_row(i) for i in range(2, 30))])
    corpus = build(dataset, validation=make_split(fraction=0.3), duplicates="drop")
    dropped = [account.dropped for account in corpus.accounts.values()]
    assert sum(each["malformed"] for each in dropped) == 40
    assert all(each["malformed"] for each in dropped)


def test_no_row_is_hashed_if_no_split_and_no_comparison_needs_it(tmp_path, monkeypatch):
    def refuse(self, example):
        raise AssertionError("this hash is not needed")

    monkeypatch.setattr(ExampleHasher, "hash_content", refuse)
    assert len(build(write(tmp_path, "a.jsonl", [make_row(1), make_row(1)])).train) == 2


# --- equal examples that learn other tokens, or that are dropped ----------------------------------


def make_weighted(*weights, question="one?", **columns):
    messages = make_chat(question, "uno", "two?", "dos")
    answers = iter(weights)
    weighted = [
        {**message, "weight": next(answers)} if message["role"] == "assistant" else message
        for message in messages
    ]
    return {"messages": weighted, **columns}


def test_rows_that_learn_different_answers_are_not_duplicates(tmp_path):
    rows = [make_weighted(1, 0), make_weighted(0, 1), make_weighted(1, 0, id=7)]
    corpus = build(write(tmp_path, "a.jsonl", rows), duplicates="drop")
    assert corpus.train["row"][:] == [0, 1]
    assert corpus.accounts["train"].examples["duplicate"] == "a.jsonl:3 (the same as a.jsonl:1)"


def test_a_row_is_a_duplicate_only_of_a_row_that_is_kept(tmp_path):
    rows = [make_weighted(0, 0), make_weighted(1, 1), make_weighted(1, 1)]
    corpus = build(write(tmp_path, "a.jsonl", rows), duplicates="drop")
    assert corpus.train["row"][:] == [1]
    assert corpus.accounts["train"].dropped == {"no_target": 1, "duplicate": 1}


def test_equal_tokens_with_different_labels_are_not_duplicates(tmp_path):
    rows = [
        {"input_ids": [5, 6, 7], "labels": labels}
        for labels in ([-100, 6, -100], [-100, -100, 7], [-100, 6, -100])
    ]
    corpus = build(write(tmp_path, "a.jsonl", rows), duplicates="drop")
    assert corpus.train["row"][:] == [0, 1]


def test_an_overlap_is_found_even_if_the_rows_learn_different_answers(tmp_path):
    train = write(tmp_path, "train.jsonl", [make_weighted(1, 0)])
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [make_weighted(0, 1)])])
    with pytest.raises(DataError, match="in two splits, train and test"):
        build(train, test=test)


def test_a_row_that_both_splits_drop_is_not_an_overlap(tmp_path):
    long = {"messages": make_chat("q " * 300, "a " * 300)}
    train = write(tmp_path, "train.jsonl", [long, make_row(1)])
    test = make_split(datasets=[write(tmp_path, "test.jsonl", [long, make_row(2)])])
    corpus = build(train, test=test)
    for split in ("train", "test"):
        assert corpus.accounts[split].dropped == {"overlong": 1}


# --- rows that become the same tokens -------------------------------------------------------------


def build_qwen(*datasets, **data):
    tokenizer = load_family("qwen3")
    stops = {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    return build_corpus(make_data(*datasets, **data), tokenizer, stops)


THOUGHT = [
    make_chat("q", "<think>\nhmm\n</think>\n\na"),
    make_chat("q", "hmm\n</think>\n\na"),
    [*make_chat("q"), {"role": "assistant", "content": "a", "reasoning_content": "hmm"}],
    [*make_chat("q"), {"role": "assistant", "content": "a", "thinking": "\nhmm\n"}],
]
SWITCHED = [
    {"enable_thinking": False},
    {},
    {"enable_thinking": 0},
    {"enable_thinking": "false"},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"unread": 1}},
]
SAME_TOKENS = [
    *([{"messages": THOUGHT[0]}, {"messages": other}] for other in THOUGHT[1:]),
    *([make_row(1, **SWITCHED[0]), make_row(1, **other)] for other in SWITCHED[1:]),
]


@pytest.mark.parametrize(("row", "same"), SAME_TOKENS)
def test_rows_that_become_the_same_tokens_overlap(tmp_path, row, same):
    first, second = (
        write(tmp_path, f"{name}.jsonl", [each]) for name, each in enumerate((row, same))
    )
    recipe = {} if "think" in str(row["messages"]) else {"enable_thinking": False}
    kwargs = {"chat_template_kwargs": recipe}
    ids = [build_qwen(each, **kwargs).train["input_ids"][0] for each in (first, second)]
    assert ids[0] == ids[1]
    with pytest.raises(DataError, match="in two splits, train and test"):
        build_qwen(first, test=make_split(datasets=[second]), **kwargs)


def test_a_thinking_block_in_a_question_is_ordinary_text(tmp_path):
    first, second = (
        write(tmp_path, f"{mark}.jsonl", [{"messages": make_chat(f"<{mark}>hmm</{mark}>q", "a")}])
        for mark in ("think", "thought")
    )
    corpus = build_qwen(first, test=make_split(datasets=[second]))
    assert corpus.train["input_ids"][0] != corpus.test["input_ids"][0]


def test_rows_with_different_template_arguments_are_different_examples(tmp_path):
    rows = [make_row(1, enable_thinking=True), make_row(1), make_row(1, enable_thinking=False)]
    dataset = write(tmp_path, "a.jsonl", rows)
    recipe = {"chat_template_kwargs": {"enable_thinking": False}}
    assert build_qwen(dataset, duplicates="drop", **recipe).train["row"][:] == [0, 1]


# --- properties of a row that do not change its split ---------------------------------------------


def find_validation(dataset, tokenizer, **data):
    section = make_data(dataset, validation=make_split(fraction=0.3), **data)
    corpus = build_corpus(section, tokenizer, {tokenizer.eos_token_id})
    return corpus.validation["row"][:]


def test_the_split_of_a_row_does_not_depend_on_the_template_or_its_arguments(tmp_path):
    rows = [
        in_messages(make_row(index, enable_thinking=bool(index % 2)), name=f"Ann {index}")
        for index in range(40)
    ]
    dataset = write(tmp_path, "a.jsonl", rows)
    plain = tiny.make_tokenizer()
    named = tiny.make_tokenizer("{# message.name #}" + tiny.CHATML)
    held_out = find_validation(dataset, plain)
    assert 4 < len(held_out) < 20
    assert held_out == find_validation(dataset, named)
    for kwargs in ({"enable_thinking": True}, {"enable_thinking": False, "other": 1}):
        assert held_out == find_validation(dataset, named, chat_template_kwargs=kwargs)


def test_one_question_with_and_without_reasoning_is_in_one_split(tmp_path):
    on, off = (
        write(tmp_path, f"{name}.jsonl", [make_row(i, enable_thinking=name) for i in range(60)])
        for name in (True, False)
    )
    thought, closed = (
        write(
            tmp_path,
            f"thought{len(opening)}.jsonl",
            [
                {"messages": make_chat(f"What is {i}?", f"{opening}{i}!</think>It is {i}.")}
                for i in range(60)
            ],
        )
        for opening in ("<think>", "")
    )
    corpus = build_qwen(
        on,
        off,
        thought,
        closed,
        chat_template_kwargs={"enable_thinking": True},
        validation=make_split(fraction=0.3),
    )
    held_out = corpus.validation["row"][:]
    assert len(held_out) % 4 == 0
    assert held_out[: len(held_out) // 4] * 4 == held_out
