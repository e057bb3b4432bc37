"""Faults of a chat template drop a row or give a warning; they never crash the preparation."""

from lora_sft.data.drops import FIXES, Drop
from lora_sft.data.examples.conversation import Conversation, Message
from lora_sft.data.labels.labelling import Labeller
from tests import tiny
from tests.data.sections import make_data

QUESTION, ANSWER = Message("user", "a"), Message("assistant", "b")


def make_labeller(tokenizer, **data):
    return Labeller(make_data(**data), tokenizer, {tokenizer.eos_token_id})


def test_a_runtime_error_of_the_template_drops_only_its_row():
    template = "{%- if messages[0].content == 'boom' -%}{{ cycler().next() }}{%- endif -%}"
    labeller = make_labeller(tiny.make_tokenizer(template + tiny.CHATML))
    fatal = Conversation((Message("user", "boom"), ANSWER))
    fine = Conversation((QUESTION, ANSWER))
    dropped, (row,) = labeller.label([("rows.jsonl:1", fatal), ("rows.jsonl:2", fine)])
    assert isinstance(dropped, Drop)
    assert dropped.reason == "template_refused"
    assert "at least one item" in dropped.detail
    assert row.turns


def test_rows_with_tools_are_prepared_with_named_templates_that_have_no_default():
    tokenizer = tiny.make_tokenizer()
    knows_the_switch = "{%- if enable_thinking is defined -%}{%- endif -%}" + tiny.CHATML
    tokenizer.chat_template = {"tool_use": knows_the_switch}
    labeller = make_labeller(tokenizer)
    tools = ({"type": "function", "function": {"name": "now", "parameters": {}}},)
    with_tools = Conversation((QUESTION, ANSWER), tools=tools)
    without = Conversation((QUESTION, ANSWER))
    (row,), dropped = labeller.label([("rows.jsonl:1", with_tools), ("rows.jsonl:2", without)])
    labeller.add_notes(labeller.take_notes())
    assert row.turns
    assert dropped.reason == "template_refused"
    assert any("enable_thinking" in warning for warning in labeller.warnings)


def test_the_fix_for_turns_without_a_stop_token_names_another_template():
    template = tiny.CHATML.replace("'<|im_end|>\\n'", "'\\n'").replace("<|im_start|>", "# ")
    labeller = make_labeller(tiny.make_tokenizer(template))
    (dropped,) = labeller.label([("rows.jsonl:1", Conversation((QUESTION, ANSWER)))])
    assert dropped.reason == "no_stop_token"
    assert FIXES[dropped.reason].startswith("use a chat template that ends its turns")
