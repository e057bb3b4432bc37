"""What the recipe told the template stands in the exported template, and a request still wins."""

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
# A name that templates read, and two values that they may be given.
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
    except Exception as error:  # a template refuses by raising whatever it likes
        return repr(error)


def test_a_plain_rendering_of_the_export_is_the_rendering_with_the_recipes_arguments():
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
def test_any_value_of_a_recipe_is_spelled_so_that_jinja_reads_it_back(value):
    template = "{{- extra | tojson -}}"
    exported = set_template_defaults(template, {"extra": value})
    assert render(exported, CHATS[0]) == render(template, CHATS[0], extra=value)


def test_a_value_without_a_spelling_is_refused():
    with pytest.raises(ExportError, match="cannot be given a date") as caught:
        set_template_defaults(CHATML, {"day": date(2026, 1, 2)})
    assert "data.chat_template_kwargs.day" in caught.value.where


def test_a_template_without_arguments_stays_as_it_is_and_none_is_set_twice():
    assert set_template_defaults(CHATML, {}) == CHATML
    assert set_template_defaults(CHATML, {"tools": [], "messages": []}) == CHATML
    once = set_template_defaults(CHATML, {"enable_thinking": False})
    assert set_template_defaults(once, {"enable_thinking": False}) == once


def test_a_template_that_begins_with_a_blank_line_keeps_it():
    template = "\n  {{ messages[0].content }}"
    exported = set_template_defaults(template, {"enable_thinking": False})
    assert render(exported, CHATS[0]) == render(template, CHATS[0])


def test_the_day_that_a_recipe_names_stands_in_the_export():
    exported = set_template_defaults(CLOCKED, {}, "2024-07-26")
    today = f"Today is {date.today().strftime('%d %b %Y')}. "
    assert render(exported, CHATS[0]).startswith("Today is 26 Jul 2024. ")
    assert render(CLOCKED, CHATS[0]).startswith(today)
    assert depends_on_date(make_tokenizer(CLOCKED))
    assert not depends_on_date(make_tokenizer(exported))
    assert set_template_defaults(CHATML, {}, "2024-07-26") == CHATML


def test_a_clock_that_is_asked_in_an_unknown_way_cannot_be_stopped():
    with pytest.raises(ExportError, match="something other than a plain text"):
        set_template_defaults("{% set f = '%Y' %}{{ strftime_now(f) }}", {}, "2024-07-26")
