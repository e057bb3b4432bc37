"""A lost text is always reported, and a rendered text is never reported as lost."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_sft.data.drops import Drop
from lora_sft.data.examples.conversation import Conversation, Message
from lora_sft.data.labels.content_survival import find_lost_text, list_call_texts
from lora_sft.data.labels.labelling import Labeller
from tests import tiny
from tests.data.sections import make_data

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
WRITES_PYTHON = ("lfm2_v2", "lfm2_2_5_vl")  # they write a call as code, texts in single quotes
ODD_TEXTS = (
    "what's new",
    "<p class='a'>",
    """He said: "it's".""",
    "two\nlines",
    "a tab\there and a line's\r\nend",
    "C:\\new\\table's",
    "Zoë's \u200b\xa0\x7f",
)


@cache
def load(family: str) -> Any:
    tokenizer = tiny.make_tokenizer((TEMPLATES / f"{family}.jinja").read_text())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|return|>", "<|call|>"]})
    return tokenizer


def learn(tokenizer: Any, **answer: Any) -> str:
    """Return the learned text of one answer, or the drop's reason and detail."""
    names = ("<|im_end|>", "<|return|>", "<|call|>")
    stops = {tokenizer.added_tokens_encoder.get(name) for name in names} - {None}
    calls = tuple(answer.pop("tool_calls", ()))
    message = Message("assistant", answer.pop("content", ""), calls, answer)
    conversation = Conversation((Message("user", "Hello"), message))
    (rows,) = Labeller(make_data(), tokenizer, stops).label([("rows:1", conversation)])
    if isinstance(rows, Drop):
        return f"{rows.reason}: {rows.detail}"
    (turn,) = rows[0].turns
    return str(tokenizer.decode(rows[0].input_ids[turn.start : turn.end]))


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "search", "arguments": arguments}}


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("family", WRITES_PYTHON)
def test_an_argument_in_single_quotes_is_found_in_its_escaped_form(family, text):
    learned = learn(load(family), tool_calls=[call(query=text)])
    assert not learned.startswith("content_lost"), learned
    assert "[search(query='" in learned


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_rendered_arguments_are_never_reported_as_lost(texts):
    asked = call(**{f"key{index}": text for index, text in enumerate(texts)})
    required = list(list_call_texts(asked))
    assert find_lost_text(required, render_as_json(asked)) == ""
    assert find_lost_text(required, render_as_code(asked)) == ""


def render_as_json(asked: dict[str, Any]) -> str:
    return json.dumps(asked["function"])


def render_as_code(asked: dict[str, Any]) -> str:
    """Return the call as LFM2's template writes it."""
    escapes = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"})
    arguments = asked["function"]["arguments"].items()
    return f"[search({', '.join(f'{k}={v.translate(escapes)!s}' for k, v in arguments)})]"


@pytest.mark.parametrize(
    "arguments",
    [
        {"is_default": True, "value": "true"},
        {"value": "true", "is_default": True},
        {"is_default": False, "value": "false", "other": True, "third": "true"},
    ],
)
def test_a_boolean_does_not_take_the_place_of_a_text(arguments):
    learned = learn(load("qwen3_5_think"), tool_calls=[call(**arguments)])
    assert not learned.startswith("content_lost"), learned


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<seed:think>", "<reasoning>"])
def test_a_template_may_replace_the_thinking_marks_of_a_content(opening):
    closing = opening.replace("<", "</").replace("[", "[/")
    learned = learn(load("gptoss"), content=f"{opening}hmm{closing}yes")
    assert learned == (
        "<|channel|>analysis<|message|>hmm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>yes<|return|>"
    )


def test_reasoning_needs_its_own_place_even_if_the_answer_repeats_it():
    tokenizer = tiny.make_tokenizer()
    twice = "The answer is 4."
    lost = learn(tokenizer, content=twice, reasoning_content=twice)
    assert lost.startswith("content_lost"), lost
    part = learn(tokenizer, content=twice, reasoning_content="answer")
    assert part.startswith("content_lost"), part


@pytest.mark.parametrize("content", ["<think>\nhmm\n</think>\n\nYes.", "hmm</think>Yes."])
def test_reasoning_in_a_field_and_in_the_content_needs_only_one_place(content):
    learned = learn(tiny.make_tokenizer(), content=content, reasoning_content="hmm")
    assert learned == f"{content}<|im_end|>"


def test_equal_texts_need_one_place_each_in_any_order():
    required = [("b",), ("a",), ("b",)]
    assert find_lost_text(required, "abb") == ""
    assert find_lost_text(required, "bba") == ""
    assert find_lost_text(required, "ab a") == "b"
    assert find_lost_text([("10",), ("1",)], "1, 0") == "10"
    assert find_lost_text([("1",), ("10",)], "10, 1") == ""
    assert find_lost_text([("1",), ("10",)], "10, 2") == "1"


@pytest.mark.parametrize("in_order", [True, False])
def test_the_search_time_is_proportional_to_the_number_of_values(in_order):
    """Eight times the values must not take 64 times as long. The bound leaves room for noise."""
    few, many = (measure_values(count, in_order) for count in (5_000, 40_000))
    assert many < 24 * few


def measure_values(count: int, in_order: bool) -> float:
    values = [index / 7 for index in range(1, count + 1)]
    asked = call(values=values, first="yes")
    target = render_as_json(asked if in_order else call(first="yes", values=values))
    required = list(list_call_texts(asked))
    durations = []
    for _ in range(3):
        begin = time.process_time()
        assert find_lost_text(required, target) == ""
        durations.append(time.process_time() - begin)
    return min(durations)
