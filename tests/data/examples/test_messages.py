"""Messages: tool calls are read in every spelling, and reasoning is learned only once."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.drops import Drop, RowDropped
from lora_sft.data.examples.row_formats import FORMATS
from lora_sft.data.labels.labelling import Labeller
from tests import tiny
from tests.data.labels.test_template_oracle import CHATML_STOPS, FAMILIES, STOPS, load_family
from tests.data.sections import make_chat, make_data, make_dataset, write_jsonl

PARIS = {"city": "Paris"}
ANSWER = {"role": "assistant", "content": "4"}


def read_call(function, **call):
    """Return the function of a call in OpenAI's nested form, as it is read."""
    calls = [{"type": "function", "function": function, **call}]
    messages = [{"role": "assistant", "tool_calls": calls}]
    (message,) = FORMATS["messages"].read({"messages": messages}).messages
    return message.tool_calls[0]["function"]


@pytest.mark.parametrize("arguments", [PARIS, json.dumps(PARIS)])
def test_parameters_of_llama_3_become_arguments(arguments):
    written = {"name": "f", "parameters": arguments}
    assert read_call(written) == {"name": "f", "arguments": PARIS}
    chat = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(written)},
    ]
    _, message = FORMATS["sharegpt"].read({"conversations": chat}).messages
    assert message.tool_calls[0]["function"] == {"name": "f", "arguments": PARIS}
    flat = {"messages": [{"role": "assistant", "tool_calls": [written]}]}
    (message,) = FORMATS["messages"].read(flat).messages
    assert message.tool_calls == ({"name": "f", "arguments": PARIS},)


def test_equal_arguments_under_both_names_are_read():
    both = {"name": "f", "arguments": json.dumps(PARIS), "parameters": PARIS}
    assert read_call(both) == {"name": "f", "arguments": PARIS}
    unused = {"name": "f", "arguments": PARIS, "parameters": None}
    assert read_call(unused)["arguments"] == PARIS


@pytest.mark.parametrize(
    ("function", "beside"),
    [
        ({"name": "f", "arguments": {"city": "Rome"}, "parameters": PARIS}, {}),
        ({"name": "f", "arguments": {}, "parameters": PARIS}, {}),
        ({"name": "f", "input": PARIS}, {}),
        ({"name": "f", "arguments": None, "kwargs": "Paris"}, {}),
        ({"name": "f"}, {"arguments": PARIS}),
        ({"name": "f"}, {"parameters": PARIS}),
        ({"name": "f"}, {"input": "Paris"}),
    ],
)
def test_a_call_whose_arguments_would_be_lost_is_malformed(function, beside):
    with pytest.raises(RowDropped) as caught:
        read_call(function, **beside)
    assert caught.value.drop.reason == "malformed"
    assert any(f'"{key}"' in caught.value.drop.detail for key in {**function, **beside})


@pytest.mark.parametrize("beside", [{}, {"status": "completed"}, {"thought_signature": "abc"}])
def test_other_keys_of_a_call_without_arguments_are_kept(beside):
    call = {"type": "function", "id": "c1", "index": 0, "function": {"name": "now"}, **beside}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    (message,) = FORMATS["messages"].read({"messages": messages}).messages
    assert message.tool_calls == ({**call, "function": {"name": "now", "arguments": {}}},)


def test_tool_calls_and_tools_may_be_json_strings_or_empty():
    calls = [{"type": "function", "function": {"name": "f", "arguments": PARIS}}]
    messages = [
        {**ANSWER, "tool_calls": json.dumps(calls)},
        *({**ANSWER, "tool_calls": empty} for empty in ("[]", "null", "", [], None)),
    ]
    for tools in ("null", "[]", "", None):
        conversation = FORMATS["messages"].read({"messages": messages, "tools": tools})
        assert [list(message.tool_calls) for message in conversation.messages] == [
            calls,
            *[[]] * 5,
        ]
        assert conversation.tools == ()
    with pytest.raises(RowDropped, match="tool calls of message 0"):
        FORMATS["messages"].read({"messages": [{**ANSWER, "tool_calls": "f()"}]})


# --- reasoning ------------------------------------------------------------------------------------


def read_answer(content, **fields):
    message = {"role": "assistant", "content": content, **fields}
    (read,) = FORMATS["messages"].read({"messages": [message]}).messages
    return read


def test_different_reasoning_in_the_content_and_in_a_field_is_malformed():
    with pytest.raises(RowDropped, match="different reasoning in its content and"):
        read_answer("<think>\nso\n</think>\n\n4", reasoning_content="hmm")


def test_reasoning_fields_may_differ_in_white_space():
    assert read_answer("4", reasoning="hmm", reasoning_content="hmm\n").reasoning == "hmm\n"


def test_an_empty_reasoning_field_does_not_hide_another():
    message = read_answer("4", reasoning_content="", thinking="hmm", reasoning=" ")
    assert message.reasoning == "hmm"
    inline = read_answer("<think>\nhmm\n</think>\n\n4", reasoning_content="")
    assert inline.as_template_input() == {
        "role": "assistant",
        "content": "<think>\nhmm\n</think>\n\n4",
    }


@pytest.mark.parametrize("fields", [{}, {"reasoning_content": ""}, {"reasoning": "Two and two."}])
def test_reasoning_is_learned_once_if_the_template_reads_both_places(tmp_path, fields):
    content = "<think>\nTwo and two.\n</think>\n\n4"
    rows = [
        {"messages": [*make_chat("2+2?"), {"role": "assistant", "content": content, **fields}]},
    ]
    tokenizer = load_family("qwen3")
    data = make_data(make_dataset(write_jsonl(tmp_path / "a.jsonl", rows)))
    corpus = build_corpus(data, tokenizer, {tokenizer.convert_tokens_to_ids("<|im_end|>")})
    text = tokenizer.decode(corpus.train["input_ids"][0])
    assert text.count("Two and two.") == text.count("<think>") == 1


BLOCK = "<think>\nhmm\n</think>\n\n4"
CLOSED = "hmm\n</think>\n\n4"  # as an answer continues a prompt that opens the block
NEXT = [{"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6"}]


def label(family, *messages):
    """Return the labelled rows of a question and these messages for one model family, or a drop."""
    tokenizer = load_family(family)
    stops = STOPS.get(family, CHATML_STOPS)
    labeller = Labeller(make_data(), tokenizer, set(tokenizer.convert_tokens_to_ids(stops)))
    conversation = FORMATS["messages"].read({"messages": [*make_chat("2+2?"), *messages]})
    return labeller.label([("a.jsonl:1", conversation)])[0]


def answer(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def find_learned(family, *messages):
    """Return the learned text of the first answer, or the reason why the row is dropped."""
    rows = label(family, *messages)
    if isinstance(rows, Drop):
        return rows.reason
    row = rows[0]
    return load_family(family).decode(row.input_ids[row.turns[0].start : row.turns[0].end])


@pytest.mark.parametrize("family", FAMILIES)
def test_reasoning_in_the_content_and_in_a_field_is_learned_once_in_every_family(family):
    in_content = find_learned(family, answer(BLOCK))
    is_once = in_content.count("hmm") == 1
    assert is_once or (family, in_content) == ("qwen3_5_nothink", "content_lost")
    for key in ("reasoning_content", "reasoning", "thinking"):
        assert find_learned(family, answer(BLOCK, **{key: "hmm"})) == in_content
    in_field = find_learned(family, answer("4", reasoning_content="hmm"))
    closed = find_learned(family, answer(CLOSED, reasoning_content="hmm"))
    assert closed == (in_content.replace(BLOCK, CLOSED) if in_field == "content_lost" else in_field)


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5", "llama3", "gptoss", "glm4moe", "gemma"])
def test_repeated_reasoning_of_an_answer_that_is_not_learned_is_rendered_once(family):
    in_content = label(family, answer(BLOCK, train=False), *NEXT)
    in_both = label(family, answer(BLOCK, train=False, reasoning_content="hmm"), *NEXT)
    assert in_both[0].input_ids == in_content[0].input_ids


def test_a_closing_mark_that_an_answer_quotes_does_not_end_its_reasoning():
    prose = "Use `</think>`."
    assert f"hmm\n</think>\n\n{prose}" in find_learned(
        "qwen3", answer(prose, reasoning_content="hmm")
    )


QUOTING = {"role": "user", "content": "<think>\nfoo\n</think>\nWhat is this?"}


@pytest.mark.parametrize("family", ["gptoss", "qwen3_8", "nemotron_3_nano", "muse_glimmer"])
def test_a_thinking_block_in_a_user_message_is_not_moved(family):
    rows = label(family, answer("4"), QUOTING, answer("Yes."))
    assert QUOTING["content"] in load_family(family).decode(rows[-1].input_ids)


# --- values that JSON cannot hold -----------------------------------------------------------------


def prepare_parquet(path, messages, template):
    pq.write_table(pa.Table.from_pylist([{"messages": each} for each in messages]), path)
    tokenizer = tiny.make_tokenizer(template)
    data = make_data(make_dataset(path))
    return build_corpus(data, tokenizer, {tokenizer.eos_token_id})


def test_a_value_that_json_cannot_hold_is_malformed_only_if_the_template_reads_it(tmp_path):
    def ask(score, picture):
        question = {"role": "user", "content": "q", "score": score, "picture": picture}
        return [question, {"role": "assistant", "content": "a", "score": 0.5, "picture": None}]

    rows = [ask(float("nan"), None), ask(None, b"\x89PNG"), ask(1.0, None)]
    corpus = prepare_parquet(tmp_path / "a.parquet", rows, tiny.CHATML)
    assert len(corpus.train) == 3
    reads_score = "{%- if messages[0].score -%}{{- messages[0].score -}}{%- endif -%}"
    corpus = prepare_parquet(tmp_path / "b.parquet", rows, reads_score + tiny.CHATML)
    assert corpus.accounts["train"].dropped == {"malformed": 1}
    assert "message 0.score is nan" in corpus.accounts["train"].examples["malformed"]
    as_json = "(message | tojson if message.role == 'user' else '')"
    whole = tiny.CHATML.replace("message.role +", f"{as_json} + message.role +")
    corpus = prepare_parquet(tmp_path / "c.parquet", rows, whole)
    shown = [tiny.make_tokenizer().decode(ids) for ids in corpus.train["input_ids"]]
    assert len(shown) == 3
    assert not any(placeholder in text for text in shown for placeholder in ("NaN", "bytes"))
