"""Find which variables of the chat template a request may set."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from jinja2 import meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

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
