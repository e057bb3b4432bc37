"""The text of a prompt, compared with transformers, and the variables that a request can set."""

from __future__ import annotations

import itertools

import jinja2
import pytest

from lora_sft.data.templates.prompt_text import render_prompt
from lora_sft.data.templates.rendering import TemplateRefusal
from lora_sft.export.serving.serving_files import set_defaults_in_templates
from lora_sft.serve.prompt_text import find_settable_variables
from tests import tiny

TEMPLATES = {
    name: text for name, text in vars(tiny).items() if isinstance(text, str) and "{%" in text
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"function": {"arguments": {"b": 1, "a": None}, "name": "f"}}
CONVERSATIONS = [
    [{"role": "user", "content": "hi", "name": None}],
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>t</think>b", "reasoning_content": "r"},
        {"role": "user", "content": " c "},
    ],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "d"},
    ],
    [{"role": "odd", "content": "a"}],
]
TOOLS = (None, [], [TOOL])
VARIABLES = ({}, {"given": {"x": [1, None]}, "in_macro": True})
# It reads every variable that transformers passes, in each place where a template can read one.
READER = (
    "{{ documents }}{{ tools }}{{ add_generation_prompt }}{{ bos_token }}{{ given }}"
    "{% for message in messages %}{{ message.keys() | list }}{% if loop.last %}{% break %}"
    "{% endif %}{% endfor %}{% generation %}{{ inside }}{% endgeneration %}"
    "{% macro f(own) %}{{ own }}{{ in_macro }}{% endmacro %}{{ f(1) }}"
    "{% set local = 1 %}{{ local }}{{ namespace(x=1).x }}{{ strftime_now is defined }}"
)


@pytest.mark.parametrize("name", [*TEMPLATES, "READER"])
def test_a_prompt_is_the_text_of_transformers(name):
    tokenizer = tiny.make_tokenizer({**TEMPLATES, "READER": READER}[name])
    count = 0
    for chat, tools, kwargs in itertools.product(CONVERSATIONS, TOOLS, VARIABLES):
        try:
            expected = tokenizer.apply_chat_template(
                chat, tools, add_generation_prompt=True, tokenize=False, **kwargs
            )
        except jinja2.TemplateError:
            with pytest.raises(TemplateRefusal):
                render_prompt(tokenizer, chat, kwargs, tools)
            continue
        assert render_prompt(tokenizer, chat, kwargs, tools) == expected
        count += 1
    assert count >= 12


def test_a_request_can_set_the_variables_that_only_it_sets():
    tokenizer = tiny.make_tokenizer(READER)
    assert find_settable_variables(tokenizer, None) == {"given", "inside", "in_macro"}


def test_a_request_can_set_a_variable_that_has_a_default():
    template = set_defaults_in_templates(
        "{% if enable_thinking %}x{% endif %}", {"enable_thinking": True}, None
    )
    tokenizer = tiny.make_tokenizer(template)
    assert find_settable_variables(tokenizer, None) == {"enable_thinking"}
    chat = [{"role": "user", "content": "a"}]
    assert render_prompt(tokenizer, chat, {}) == "x"
    assert render_prompt(tokenizer, chat, {"enable_thinking": False}) == ""


def test_the_template_for_tools_has_its_own_variables():
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = {"default": "{{ a }}", "tool_use": "{{ b }}"}
    assert find_settable_variables(tokenizer, None) == {"a"}
    assert find_settable_variables(tokenizer, [TOOL]) == {"b"}
    assert render_prompt(tokenizer, [], {"a": 1, "b": 2}, [TOOL]) == "2"
