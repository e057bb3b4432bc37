"""Formats: which one a row is in, and what it becomes."""

import pytest

from lora_sft.data.conversation import PlainText, PromptCompletion
from lora_sft.data.drops import RowDropped
from lora_sft.data.row_formats import FORMATS, find_row_format
from lora_sft.errors import DataError

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def convert(values, name="auto"):
    return find_row_format(name, [values], "rows.jsonl").read(values)


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


def test_openai_messages_keep_text_parts_tools_and_calls():
    values = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}, "c"]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r"},
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


def test_train_and_weight_are_two_spellings_of_one_wish():
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
def test_sharegpt_roles_of_all_spellings(column):
    spellings = [
        "system",
        "human",
        "user",
        "gpt",
        "assistant",
        "model",
        "chatgpt",
        "tool",
        "observation",
        "function",
    ]
    rows = [{"from": role, "value": role} for role in spellings]
    expected = ["system", "user", "user", *["assistant"] * 4, *["tool"] * 3]
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
    bare = {"instruction": "Hi", "input": "", answer: "Ho", "system": "S"}
    assert turns(convert(bare)) == [("system", "S"), ("user", "Hi"), ("assistant", "Ho")]


def test_prompt_and_completion_are_texts_or_chats():
    assert convert({"prompt": "a", "completion": "b"}) == PromptCompletion("a", "b")
    chat = convert(
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        }
    )
    assert chat.completion_start == 1
    assert turns(chat) == [("user", "a"), ("assistant", "b")]


def test_a_text_column_is_plain_text():
    assert convert({"text": "a", "category": "x"}) == PlainText("a")


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
        ("sharegpt", {"conversations": [{"from": "martian", "value": "a"}]}),
        ("alpaca", {"instruction": "a", "output": None}),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["a"]}),
        ("prompt_completion", {"prompt": "a", "completion": 1}),
        ("text", {"text": None}),
    ],
)
def test_a_malformed_row_is_a_drop_of_its_own(name, values):
    with pytest.raises(RowDropped) as caught:
        FORMATS[name].read(values)
    assert caught.value.drop.reason == "malformed"
    assert caught.value.drop.detail


def test_columns_that_fit_no_format_are_listed_with_what_each_needs():
    with pytest.raises(DataError) as caught:
        find_row_format("auto", [{"mr": "a", "ref": "b"}], "e2e.csv")
    assert "mr, ref" in caught.value.what
    for row_format in FORMATS.values():
        assert f"{row_format.name}: {row_format.describe_needs()}" in caught.value.what
    assert "rename_columns" in caught.value.fix


def test_columns_that_fit_two_formats_need_a_choice():
    with pytest.raises(DataError, match="more than one format: messages, text"):
        find_row_format("auto", [{"messages": [], "text": ""}], "rows.jsonl")


def test_a_named_format_without_its_columns_is_refused():
    with pytest.raises(DataError, match=r"instruction, output\|response; the rows have text"):
        find_row_format("alpaca", [{"text": "a"}], "rows.jsonl")
    with pytest.raises(DataError, match="no row format"):
        find_row_format("tokenized", [{"text": "a"}], "rows.jsonl")
