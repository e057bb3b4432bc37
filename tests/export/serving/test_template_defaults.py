"""The exported template has the recipe's arguments as defaults, and a request can change them."""

from __future__ import annotations

import re
from datetime import date
from functools import cache
from pathlib import Path

import pytest
import trl

from lora_sft.data.templates.rendering import depends_on_date
from lora_sft.errors import ExportError
from lora_sft.export.serving.template_defaults import set_template_defaults
from tests.tiny import CHATML, make_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# An argument that some templates read, and two values for it.
KNOWN = {
    "enable_thinking": (False, True),
    "thinking": (True, False),
    "reasoning_effort": ("high", "low"),
    "date_string": ("1 Jan 2020", "2 Feb 2022"),
    "model_identity": ('You "are" {% x %} {{ é\\n😀\n', "Another"),
    "clear_thinking": (False, True),
}
CHATS = (
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHo"},
        {"role": "user", "content": "And?"},
    ],
)
LEAST_COMPARED, LEAST_WITH_EFFECT = 60, 25
CLOCKED = "{{- 'Today is ' + strftime_now('%d %b %Y') + '. ' -}}" + CHATML


@cache
def one_tokenizer():
    return make_tokenizer()


def render(template: str, chat: list[dict[str, str]], **kwargs: object) -> str:
    tokenizer = one_tokenizer()
    tokenizer.chat_template = template
    arguments = {"tokenize": False, "add_generation_prompt": True, **kwargs}
    try:
        return str(tokenizer.apply_chat_template(chat, **arguments))
    except Exception as error:  # a template may raise any error to refuse a chat
        return repr(error)


def test_the_export_without_arguments_renders_like_the_template_with_the_recipes_arguments():
    compared = with_effect = 0
    for path in sorted(TEMPLATES.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for name, (value, other) in KNOWN.items():
            if "_training" in path.stem or not re.search(rf"\b{name}\b", template):
                continue
            exported = set_template_defaults(template, {name: value})
            for chat in CHATS:
                trained = render(template, chat, **{name: value})
                assert render(exported, chat) == trained, (path.name, name)
                assert render(exported, chat, **{name: other}) == render(
                    template, chat, **{name: other}
                ), (path.name, name)
                compared += 1
                with_effect += trained != render(template, chat)
    assert compared >= LEAST_COMPARED
    assert with_effect >= LEAST_WITH_EFFECT


@pytest.mark.parametrize(
    "value", [None, True, 3, -1.5, "", 'a"b\\', ["x", 1, [None]], {"a": {"b": "}} %}"}, "c": False}]
)
def test_jinja_reads_back_every_kind_of_value_in_a_recipe(value):
    template = "{{- extra | tojson -}}"
    exported = set_template_defaults(template, {"extra": value})
    assert render(exported, CHATS[0]) == render(template, CHATS[0], extra=value)


def test_a_value_without_a_jinja_literal_is_refused():
    with pytest.raises(
        ExportError, match="a default of the chat template cannot be a date"
    ) as caught:
        set_template_defaults(CHATML, {"day": date(2026, 1, 2)})
    assert "data.chat_template_kwargs.day" in caught.value.where


def test_a_template_without_arguments_or_with_defaults_is_not_changed():
    assert set_template_defaults(CHATML, {}) == CHATML
    assert set_template_defaults(CHATML, {"tools": [], "messages": []}) == CHATML
    once = set_template_defaults(CHATML, {"enable_thinking": False})
    assert set_template_defaults(once, {"enable_thinking": False}) == once


def test_a_template_that_begins_with_a_blank_line_keeps_it():
    template = "\n  {{ messages[0].content }}"
    exported = set_template_defaults(template, {"enable_thinking": False})
    assert render(exported, CHATS[0]) == render(template, CHATS[0])


def test_the_exported_template_shows_the_template_date():
    exported = set_template_defaults(CLOCKED, {}, "2024-07-26")
    today = f"Today is {date.today().strftime('%d %b %Y')}. "
    assert render(exported, CHATS[0]).startswith("Today is 26 Jul 2024. ")
    assert render(CLOCKED, CHATS[0]).startswith(today)
    assert depends_on_date(make_tokenizer(CLOCKED))
    assert not depends_on_date(make_tokenizer(exported))
    assert set_template_defaults(CHATML, {}, "2024-07-26") == CHATML


def test_a_template_that_computes_its_date_format_cannot_get_a_fixed_date():
    with pytest.raises(ExportError, match="an argument that is not a plain text"):
        set_template_defaults("{% set f = '%Y' %}{{ strftime_now(f) }}", {}, "2024-07-26")
