"""Render the prompts of requests, of exports and of their checks.

These prompts have no labels, so they are not opened as conversations of the data. Their template is
compiled and limited as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _alias_reasoning_fields, _plain_template_data

from lora_sft.data.templates.render_budget import TemplateOverBudget
from lora_sft.data.templates.rendering import (
    TEMPLATE_FAULTS,
    TemplateRefusal,
    name_template,
    render_template,
)
from lora_sft.data.templates.template_environment import compile_template


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any],
    tools: list[Any] | None = None,
    *,
    served: bool = True,
) -> str:
    """Return the text of messages, the same as from `apply_chat_template` of transformers (5.23).

    Transformers itself would render the template without a budget.

    Args:
        tokenizer: Its template is rendered.
        messages: The messages in the form that templates read.
        template_kwargs: Variables for the template.
        tools: The tools that the template shows.
        served: Add the generation prompt, as a server does before it generates an answer.

    Raises:
        TemplateRefusal: If the template fails.
        TemplateOverBudget: If the template asks for too much work.
    """
    # transformers removes fields that are null, because many templates would print "None".
    chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
    variables = {"documents": None, **tokenizer.special_tokens_map, **template_kwargs}
    variables |= {"tools": tools, "add_generation_prompt": served}
    variables = {
        **_plain_template_data(variables),
        "messages": _alias_reasoning_fields(_plain_template_data(chat)),
    }
    place = name_template(tokenizer)
    try:
        template = compile_template(tokenizer.get_chat_template(None, tools))
    except TemplateOverBudget as error:
        raise error.at(place) from None
    except TEMPLATE_FAULTS as error:
        raise TemplateRefusal(f"{type(error).__name__}: {error}") from error
    return render_template(template, variables, place)


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Return the token ids of a prompt. See `render_prompt` for the arguments and the errors."""
    text = render_prompt(tokenizer, messages, template_kwargs)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
