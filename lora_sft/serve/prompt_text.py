"""Render a conversation to the text of a prompt, and find which variables a request may set.

`chat` and `serve` render every prompt here. The template is compiled as in training
(`data/templates`), so all limits on templates also hold for requests.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    _alias_reasoning_fields,
    _plain_template_data,
    render_jinja_template,
)

from lora_sft.data.templates.template_environment import compile_template

# `messages`, and the parameters of transformers' functions that render. A request sets none of them
# by name. For example, `chat_template` would replace the template.
PARAMETERS = frozenset(
    {
        "messages",
        *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
        *inspect.signature(render_jinja_template).parameters,
    }
)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any],
    tools: list[Any] | None = None,
) -> str:
    """Return the same text as `apply_chat_template` of transformers (5.23).

    A template is a program, so it may raise any error.
    """
    # transformers removes keys that are null, because many templates would print "None".
    chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
    variables = {
        **tokenizer.special_tokens_map,
        **template_kwargs,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": True,
    }
    variables = {
        **_plain_template_data(variables),
        "messages": _alias_reasoning_fields(_plain_template_data(chat)),
    }
    return compile_template(tokenizer.get_chat_template(None, tools)).render(variables)


def find_settable_variables(
    tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None
) -> frozenset[str]:
    """Return the variables that the chat template reads, except those that rendering itself sets.

    Some tokenizers have another template for requests with tools.

    Raises:
        ValueError: If the tokenizer has several templates and no default.
        jinja2.TemplateError: If the template does not compile.
    """
    read = _find_read_variables(tokenizer.get_chat_template(None, tools))
    return read - tokenizer.special_tokens_map.keys()


@lru_cache
def _find_read_variables(template: str) -> frozenset[str]:
    environment = compile_template(template).environment
    read = meta.find_undeclared_variables(environment.parse(template))
    return frozenset(read - environment.globals.keys() - PARAMETERS)
