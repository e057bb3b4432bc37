"""Rows that follow the label rule but may surprise the user give one warning, with a count."""

import pytest

from lora_sft.data.examples.conversation import Conversation, Message
from lora_sft.data.labels.labelling import Labeller
from tests import tiny
from tests.data.sections import make_data

KNOWS_THE_SWITCH = "{%- if enable_thinking is defined -%}{%- endif -%}" + tiny.CHATML
QUESTION = Message("user", "a")
PLAIN = Message("assistant", "b")
THOUGHT = Message("assistant", "<think>hm</think>b")


def find_warnings(template, *messages, **data):
    tokenizer = tiny.make_tokenizer(template)
    labeller = Labeller(make_data(**data), tokenizer, {tokenizer.eos_token_id})
    labeller.label([("rows.jsonl:1", Conversation(messages))])
    labeller.add_notes(labeller.take_notes())
    return labeller.warnings


@pytest.mark.parametrize(
    ("template", "answer", "data", "warns"),
    [
        (KNOWS_THE_SWITCH, PLAIN, {}, True),
        (KNOWS_THE_SWITCH, THOUGHT, {}, False),
        (KNOWS_THE_SWITCH, PLAIN, {"chat_template_kwargs": {"enable_thinking": False}}, False),
        (tiny.CHATML, PLAIN, {}, False),
    ],
)
def test_an_unset_thinking_switch_gives_a_warning_if_no_row_has_reasoning(
    template, answer, data, warns
):
    warnings = find_warnings(template, QUESTION, answer, **data)
    assert bool(warnings) == warns
    assert all("enable_thinking: false" in warning for warning in warnings)


def test_a_warning_names_the_first_row_whose_context_the_template_leaves_out():
    template = tiny.CHATML.replace("(message.content or '')", "(message.content or '')[:5]")
    (warning,) = find_warnings(template, Message("user", "a long question"), PLAIN)
    assert "1 rows (first: rows.jsonl:1)" in warning


def test_a_lost_thinking_block_gives_a_warning_in_a_question_but_not_in_an_answer():
    template = tiny.CHATML.replace("(message.content or '')", "message.content.split('k>')[-1]")
    (warning,) = find_warnings(template, Message("user", "<think>hm</think>a"), PLAIN)
    assert "1 rows (first: rows.jsonl:1)" in warning
    context_answer = Message("assistant", THOUGHT.content, train=False)
    assert find_warnings(template, QUESTION, context_answer, QUESTION, PLAIN) == []


def test_no_warning_if_every_row_sets_the_thinking_switch_itself():
    tokenizer = tiny.make_tokenizer(KNOWS_THE_SWITCH)
    closed = Conversation((QUESTION, PLAIN), template_kwargs={"enable_thinking": False})
    still_open = Conversation((QUESTION, PLAIN))
    found = []
    for conversations in ([closed, closed], [closed, still_open]):
        labeller = Labeller(make_data(), tokenizer, {tokenizer.eos_token_id})
        labeller.label([("rows.jsonl", each) for each in conversations])
        labeller.add_notes(labeller.take_notes())
        found.append(len(labeller.warnings))
    assert found == [0, 1]
