"""The format of a source row is recognised, and the row becomes the right example."""

import csv
import json
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import PlainText, PromptCompletion, TokenizedExample
from lora_sft.data.examples.row_formats import FORMATS, RowFormat, find_row_format
from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.data.rows.row_sources import read_rows
from lora_sft.errors import DataError
from lora_sft.recipe.sections.data import RowFormat as RowFormatName
from tests import tiny
from tests.data.sections import make_data, make_dataset, write_jsonl

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
WRITTEN = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def convert(values, name="auto"):
    return find_row_format(name, [values], "rows.jsonl").read(values)


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


def test_openai_messages_keep_text_parts_tools_and_calls():
    values = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}, "c"]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [WRITTEN],
                "reasoning_content": "r",
            },
            {"role": "tool", "content": "5", "tool_call_id": "1", "name": None},
        ],
        "tools": '[{"type": "function", "function": {"name": "f"}}]',
        "chat_template_kwargs": {"enable_thinking": False},
    }
    conversation = convert(values)
    assert turns(conversation) == [("user", "abc"), ("assistant", None), ("tool", "5")]
    views = [message.as_template_input() for message in conversation.messages]
    assert views[1] == {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "r"}
    assert views[2] == {"role": "tool", "content": "5", "tool_call_id": "1"}
    assert conversation.tools == ({"type": "function", "function": {"name": "f"}},)
    assert conversation.template_kwargs == {"enable_thinking": False}


def call(arguments):
    return [{"type": "function", "function": {"name": "f", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [('{"x": null}', {"x": None}), ("", {}), (" ", {}), ({"x": 1}, {"x": 1}), (None, {})],
)
def test_arguments_become_an_object_and_nothing_else_changes(written, arguments):
    messages = [{"role": "assistant", "tool_calls": call(written)}]
    (message,) = convert({"messages": messages}).messages
    assert message.tool_calls == tuple(call(arguments))
    assert messages[0]["tool_calls"] == call(written)


def test_a_call_without_arguments_gets_an_empty_object(tmp_path):
    bare = {"type": "function", "function": {"name": "now"}}
    flat = {"name": "now"}
    (message,) = convert({"messages": [{"role": "assistant", "tool_calls": [bare, flat]}]}).messages
    filled = {"name": "now", "arguments": {}}
    assert message.tool_calls == ({"type": "function", "function": filled}, filled)
    question = {"role": "user", "content": "The time?"}
    other = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [question, {"role": "assistant", "tool_calls": [other, bare]}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    tokenizer = tiny.make_tokenizer()
    data = make_data(make_dataset(tmp_path / "a.parquet"))
    corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
    text = tokenizer.decode(corpus.train["input_ids"][0])
    assert '{"name": "now", "arguments": {}}' in text or '{"arguments": {}, "name": "now"}' in text


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_messages_and_tools_may_be_json_strings(tools):
    messages = [{"role": "user", "content": "a"}]
    for written in (messages, json.dumps(messages)):
        conversation = convert({"messages": written, "tools": tools}, "messages")
        assert turns(conversation) == [("user", "a")]
        assert conversation.tools == (TOOL,)


def test_a_flat_call_and_the_older_function_call_are_read():
    flat = {"name": "f", "arguments": '{"x": 1}'}
    messages = [
        {"role": "assistant", "tool_calls": [flat]},
        {"role": "assistant", "content": "so", "function_call": flat},
    ]
    first, second = convert({"messages": messages}).messages
    assert first.tool_calls == ({"name": "f", "arguments": {"x": 1}},)
    assert second.tool_calls == tuple(call({"x": 1}))
    assert "function_call" not in second.as_template_input()


def test_weight_means_the_same_as_train():
    messages = [
        {"role": "user", "content": "a", "train": True},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "assistant", "content": "c", "weight": 1.0},
        {"role": "assistant", "content": "d"},
    ]
    conversation = convert({"messages": messages})
    assert [message.train for message in conversation.messages] == [True, False, True, None]
    assert "weight" not in conversation.messages[1].as_template_input()


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_every_spelling_of_a_sharegpt_role_is_read(column):
    spellings = [
        "system",
        "human",
        "user",
        "gpt",
        "assistant",
        "model",
        "chatgpt",
        "bing",
        "tool",
        "observation",
        "function",
        "function_response",
    ]
    rows = [{"from": role, "value": role} for role in spellings]
    expected = ["system", "user", "user", *["assistant"] * 5, *["tool"] * 4]
    conversation = convert({column: rows})
    assert [message.role for message in conversation.messages] == expected


def test_a_sharegpt_function_call_becomes_a_tool_call():
    rows = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ]
    conversation = convert({"conversations": rows, "system": "be kind"})
    assert turns(conversation)[0] == ("system", "be kind")
    assert conversation.messages[2].tool_calls[0]["function"]["name"] == "f"


@pytest.mark.parametrize("answer", ["output", "response"])
def test_alpaca_joins_instruction_and_input(answer):
    values = {"instruction": "Add", "input": "1, 2", answer: "3", "history": [["a", "b"]]}
    expected = [("user", "a"), ("assistant", "b"), ("user", "Add\n\n1, 2"), ("assistant", "3")]
    assert turns(convert(values)) == expected
    assert turns(convert({**values, "history": '[["a", "b"]]'})) == expected
    for empty in ("[]", "null", "", [], None):
        assert turns(convert({**values, "history": empty})) == expected[2:]
    bare = {"instruction": "Hi", "input": "", answer: "Ho", "system": "S"}
    assert turns(convert(bare)) == [("system", "S"), ("user", "Hi"), ("assistant", "Ho")]


@pytest.mark.parametrize(
    ("columns", "answer"),
    [
        ({"output": "", "response": "real"}, "real"),
        ({"output": "real", "response": ""}, "real"),
        ({"output": "first", "response": "second"}, "first"),
        ({"output": "", "response": None}, ""),
        ({"output": None, "response": ""}, ""),
    ],
)
def test_alpaca_reads_the_answer_from_the_first_filled_column(columns, answer):
    assert turns(convert({"instruction": "do", **columns}))[-1] == ("assistant", answer)


def test_sharegpt_messages_are_recognised_in_a_json_string(tmp_path):
    chat = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(chat)]])
    (row,) = read_rows(make_dataset(path))
    assert turns(convert(row.values)) == [("user", "a"), ("assistant", "b")]


SWITCHED = "{{- '<' ~ think ~ '>' -}}" + tiny.CHATML


def build_csv(path, column, cells, recipe_value):
    chat = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["messages", column], *([chat, cell] for cell in cells)])
    tokenizer = tiny.make_tokenizer(SWITCHED)
    data = make_data(make_dataset(path), chat_template_kwargs={"think": recipe_value})
    corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
    texts = [tokenizer.decode(ids).partition(">")[0][1:] for ids in corpus.train["input_ids"]]
    return texts, corpus.accounts["train"]


@pytest.mark.parametrize(
    ("recipe_value", "cells", "shown"),
    [
        (True, ["false", "False", "TRUE", ""], ["False", "False", "True", "True"]),
        (3, ["4", "0.5", ""], ["4", "0.5", "3"]),
        ([1], ["[2]"], ["[2]"]),
        ({"a": 1}, ['{"b": 2}'], ["{'b': 2}"]),
        ("low", ["false", "7", "", " "], ["false", "7", "low", "low"]),
        (True, ["0", "1", "0.0", "1.0"], ["False", "True", "False", "True"]),
    ],
)
def test_a_cell_sets_a_template_argument_with_the_type_of_the_recipe(
    tmp_path, recipe_value, cells, shown
):
    assert build_csv(tmp_path / "a.csv", "think", cells, recipe_value)[0] == shown


@pytest.mark.parametrize(
    ("recipe_value", "cell"),
    [(True, "no"), (True, "2"), (True, "null"), (3, "true"), (3, "three"), ([1], "{}")],
)
def test_a_cell_with_another_type_than_the_recipe_is_malformed(tmp_path, recipe_value, cell):
    _, account = build_csv(tmp_path / "a.csv", "think", [cell, ""], recipe_value)
    assert account.dropped == {"malformed": 1}
    assert (
        f'"think" is {json.loads(cell) if cell in ("2", "null", "true", "{}") else repr(cell)}'
        in (account.examples["malformed"])
    )


def test_template_kwargs_may_be_a_json_string(tmp_path):
    cells = ['{"think": false}', "", "null", "[]", "{"]
    texts, account = build_csv(tmp_path / "a.csv", "chat_template_kwargs", cells, True)
    assert texts == ["False", "True", "True"]
    assert account.dropped == {"malformed": 2}


def test_template_kwargs_of_a_row_are_read_with_the_types_of_the_recipe(tmp_path):
    values = ["false", "False", False, 0, True, None, "", "no", [1]]
    cells = [json.dumps({"think": value}) for value in values]
    texts, account = build_csv(tmp_path / "a.csv", "chat_template_kwargs", cells, True)
    assert texts == ["False", "False", "False", "False", "True", "None"]
    assert account.dropped == {"malformed": 3}


def test_a_null_in_template_kwargs_is_a_value_in_json_but_not_in_a_table(tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": chat, "chat_template_kwargs": {"think": None, "other": 1}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    tokenizer = tiny.make_tokenizer(SWITCHED)
    for path, shown in (
        (write_jsonl(tmp_path / "a.jsonl", rows), "<None>"),
        (tmp_path / "a.parquet", "<True>"),
    ):
        data = make_data(make_dataset(path), chat_template_kwargs={"think": True})
        corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
        assert tokenizer.decode(corpus.train["input_ids"][0]).startswith(shown)


def test_true_or_false_as_a_string_in_template_kwargs_is_malformed(tmp_path):
    cells = ['{"think": "False"}', '{"think": "low"}', '{"think": false}']
    texts, account = build_csv(tmp_path / "a.csv", "chat_template_kwargs", cells, None)
    assert texts == ["low", "False"]
    assert "\"think\" is the string 'False'" in account.examples["malformed"]


def test_documents_reach_the_template_from_the_row_and_from_the_recipe(tmp_path):
    tokenizer = tiny.make_tokenizer(
        "{%- if documents is none -%}{{- 'none ' -}}{%- endif -%}"
        "{%- for each in documents or [] -%}{{- each.text ~ ' ' -}}{%- endfor -%}" + tiny.CHATML
    )
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = {"chat_template_kwargs": {"documents": [{"text": "of the row"}]}}
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat, **own}, {"messages": chat}])
    for recipe in ({}, {"documents": [{"text": "of the recipe"}]}):
        data = make_data(make_dataset(path), chat_template_kwargs=recipe)
        corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
        expected = [
            tokenizer.apply_chat_template(chat, return_dict=False, **kwargs)
            for kwargs in (own["chat_template_kwargs"], recipe)
        ]
        assert corpus.train["input_ids"][:] == expected
        assert "of the row" in tokenizer.decode(expected[0])


def test_prompt_and_completion_are_texts_or_lists_of_messages():
    assert convert({"prompt": "a", "completion": "b"}) == PromptCompletion("a", "b")
    chat = convert(
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        }
    )
    assert chat.completion_start == 1
    assert turns(chat) == [("user", "a"), ("assistant", "b")]


IDS = [3, 1, 2, 2]


@pytest.mark.parametrize(
    ("columns", "is_target", "role"),
    [
        ({"labels": [-100, -100, 2, 2]}, (False, False, True, True), "completion"),
        ({"completion_mask": [0, 1, 1, 1]}, (False, True, True, True), "completion"),
        ({"assistant_masks": [False, True, False, 1]}, (False, True, False, True), "assistant"),
        (
            {"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 0, 1]},
            (False, False, False, True),
            "assistant",
        ),
        ({"attention_mask": [1, 1, 1, 1], "text": None}, None, "text"),
    ],
)
def test_labels_or_masks_decide_which_tokens_are_learned(columns, is_target, role):
    example = convert({"input_ids": IDS, **columns}, "tokenized")
    assert example == TokenizedExample(tuple(IDS), is_target, role)


def test_padding_at_either_end_is_removed():
    values = {"input_ids": [0, 5, 6, 0], "labels": [-100, 5, 6, 0], "attention_mask": [0, 1, 1, 0]}
    assert convert(values) == TokenizedExample((5, 6), (True, True), "completion")


def build(path, rows, **data):
    tokenizer = tiny.make_tokenizer()
    dataset = make_dataset(write_jsonl(path / "rows.jsonl", rows))
    return build_corpus(make_data(dataset, **data), tokenizer, {tokenizer.eos_token_id})


def test_token_ids_reach_the_corpus_unchanged(tmp_path):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7]},
        {"input_ids": [5, 6, 7], "labels": [5, -100, -100]},
        {"input_ids": [5, 6], "labels": [5, 7]},
        {"input_ids": [5, 6, 100_000], "completion_mask": [0, 1, 1]},
        {"input_ids": [5] * 20, "completion_mask": [0] + [1] * 19},
    ]
    corpus = build(tmp_path, rows, max_length=10, overlong="keep_start")
    assert corpus.train["input_ids"][:] == [[5, 6, 7], [5] * 10]
    assert corpus.train["labels"][:] == [[IGNORED_LABEL, IGNORED_LABEL, 7], [-100] + [5] * 9]
    account = corpus.accounts["train"]
    assert account.dropped == {"no_target": 1, "malformed": 2}
    assert account.examples["malformed"] == (
        "rows.jsonl:3 (label 1 is 7; it must be -100 or the token id 6)"
    )
    assert (account.truncated, account.target_tokens, account.built) == (1, 10, {"given": 2})


def test_tokens_without_labels_are_learned_only_with_loss_on_all(tmp_path):
    with pytest.raises(DataError, match="neither labels nor a mask") as caught:
        build(tmp_path, [{"input_ids": [5, 6, 7]}])
    assert "data.loss_on: all" in caught.value.fix
    corpus = build(tmp_path, [{"input_ids": [5, 6, 7]}], loss_on="all")
    assert corpus.train["labels"][:] == [[IGNORED_LABEL, 6, 7]]
    with pytest.raises(DataError, match="already choose the learned tokens"):
        build(tmp_path, [{"input_ids": [5, 6], "labels": [5, 6]}], loss_on="all")


def test_a_new_format_needs_only_a_function_and_an_entry(tmp_path, monkeypatch):
    def read_riddle(values):
        return PromptCompletion(values["riddle"], values["solution"])

    riddle = RowFormat("riddle", (("riddle",), ("solution", "answer")), read_riddle)
    monkeypatch.setitem(FORMATS, "riddle", riddle)
    corpus = build(tmp_path, [{"riddle": "What is it? ", "solution": "A fox."}])
    assert len(corpus.train) == 1


def test_the_recipe_accepts_every_format():
    of_tasks = {"table", "squad"}
    assert set(get_args(RowFormatName)) == {"auto", *FORMATS, *of_tasks}


def test_a_text_column_is_plain_text():
    assert convert({"text": "a", "category": "x"}) == PlainText("a")


ANSWER = {"role": "assistant", "content": "4"}


def test_equal_reasoning_under_two_names_is_read():
    twice = {**ANSWER, "reasoning_content": "2 + 2", "reasoning": "2 + 2", "thinking": None}
    assert convert({"messages": [twice]}).messages[0].reasoning == "2 + 2"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("messages", {"messages": "hello"}),
        ("messages", {"messages": []}),
        ("messages", {"messages": ["hello"]}),
        ("messages", {"messages": [{"content": "no role"}]}),
        ("messages", {"messages": [{"role": "user"}]}),
        ("messages", {"messages": [{"role": "user", "content": 5}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}),
        ("messages", {"messages": [{"role": "user", "content": "a"}], "tools": "{not json"}),
        ("messages", {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": 1}),
        ("messages", {"messages": [ANSWER], "chat_template_kwargs": {"tools": []}}),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": call("{not json")}]}),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": call("[1]")}]}),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": call([1])}]}),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": call(0)}]}),
        ("messages", {"messages": [{"role": "assistant", "function_call": "f()"}]}),
        ("messages", {"messages": [{**ANSWER, "reasoning_content": ["2+2"]}]}),
        ("messages", {"messages": [{**ANSWER, "thinking": {"steps": 1}}]}),
        ("messages", {"messages": [{**ANSWER, "reasoning_content": "a", "reasoning": "b"}]}),
        ("sharegpt", {"conversations": [{"from": "martian", "value": "a"}]}),
        ("alpaca", {"instruction": "a", "output": None}),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["a"]}),
        ("alpaca", {"instruction": "a", "output": "b", "history": "a"}),
        ("prompt_completion", {"prompt": "a", "completion": 1}),
        ("text", {"text": None}),
        ("tokenized", {"input_ids": "5 6"}),
        ("tokenized", {"input_ids": []}),
        ("tokenized", {"input_ids": [5, None]}),
        ("tokenized", {"input_ids": [5, 6.0]}),
        ("tokenized", {"input_ids": [5, True]}),
        ("tokenized", {"input_ids": [5, -1]}),
        ("tokenized", {"input_ids": IDS, "labels": [3, 1, 2]}),
        ("tokenized", {"input_ids": IDS, "labels": [3, 1, 2, None]}),
        ("tokenized", {"input_ids": IDS, "labels": [1, 2, 2, -100]}),
        ("tokenized", {"input_ids": IDS, "completion_mask": [0, 1, 1]}),
        ("tokenized", {"input_ids": IDS, "completion_mask": [0, 1, 1, 2]}),
        ("tokenized", {"input_ids": IDS, "assistant_masks": [0, 1, 1, None]}),
        ("tokenized", {"input_ids": IDS, "labels": IDS, "completion_mask": [1] * 4}),
        ("tokenized", {"input_ids": IDS, "attention_mask": [1, 0, 1, 1]}),
        ("tokenized", {"input_ids": IDS, "attention_mask": [0] * 4}),
    ],
)
def test_a_row_that_its_format_cannot_read_is_malformed(name, values):
    with pytest.raises(RowDropped) as caught:
        FORMATS[name].read(values)
    assert caught.value.drop.reason == "malformed"
    assert caught.value.drop.detail


def test_the_error_lists_the_columns_and_the_needs_of_each_format():
    with pytest.raises(DataError) as caught:
        find_row_format("auto", [{"mr": "a", "ref": "b"}], "e2e.csv")
    assert "mr, ref" in caught.value.what
    for row_format in FORMATS.values():
        assert f"{row_format.name}: {row_format.describe_needs()}" in caught.value.what
    assert "rename_columns" in caught.value.fix


def test_a_column_that_is_null_in_every_row_is_ignored():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    unused = {"text": None, "prompt": None, "completion": None, "input_ids": None}
    for values in (
        {"messages": chat, "conversations": None, **unused},
        {"messages": sharegpt, "conversations": None, **unused},
        {"messages": None, "conversations": sharegpt, **unused},
    ):
        assert turns(convert(values)) == [("user", "a"), ("assistant", "b")]
    late = [{"messages": None}, {"messages": None}]
    assert find_row_format("auto", late, "rows.jsonl").name == "messages"


def test_columns_that_fit_two_formats_are_refused():
    with pytest.raises(DataError, match="more than one format: messages, text"):
        find_row_format("auto", [{"messages": [], "text": ""}], "rows.jsonl")


def test_a_named_format_without_its_columns_is_refused():
    with pytest.raises(DataError, match=r"instruction, output\|response; the rows have text"):
        find_row_format("alpaca", [{"text": "a"}], "rows.jsonl")
    with pytest.raises(DataError, match="no row format"):
        find_row_format("haiku", [{"text": "a"}], "rows.jsonl")
