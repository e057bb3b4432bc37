"""Make the prompt of a request that has messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException

from lora_sft.data.templates.prompt_text import render_prompt
from lora_sft.data.templates.rendering import TemplateRefusal
from lora_sft.errors import LoraSftError
from lora_sft.serve.loaded_model import LoadedModel
from lora_sft.serve.prompt_text import find_settable_variables
from lora_sft.serve.request_fields import SHOWN_NAME_CHARACTERS, parse_arguments


def make_request_prompt(
    loaded: LoadedModel,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None,
    template_kwargs: Mapping[str, Any],
) -> list[int]:
    """Return the token ids of the prompt for OpenAI messages.

    Raises: HTTPException (400) if the template refuses the messages, or if the request sets a
        variable that the template does not read. ModelError if the prompt is too long.
        TemplateOverBudget if the template asks for too much work.
    """
    if not loaded.tokenizer.chat_template:
        raise HTTPException(400, "the model has no chat template; use /v1/completions")
    if not messages:
        raise HTTPException(400, "the conversation has no messages")
    chat = [make_template_message(message) for message in messages]
    try:
        _check_variables(template_kwargs, find_settable_variables(loaded.tokenizer, tools))
        text = render_prompt(loaded.tokenizer, chat, template_kwargs, tools)
    except (HTTPException, LoraSftError):
        raise
    except TemplateRefusal as error:
        raise HTTPException(400, f"the chat template refuses the request: {error}") from error
    except Exception as error:  # a template is a program, and may raise any error
        message = f"the chat template refuses the request: {type(error).__name__}: {error}"
        raise HTTPException(400, message) from error
    return loaded.tokenize(text, add_special_tokens=False)


def _check_variables(template_kwargs: Mapping[str, Any], settable: frozenset[str]) -> None:
    foreign = sorted(template_kwargs.keys() - settable)
    if foreign:
        raise HTTPException(
            400,
            f"chat_template_kwargs.{foreign[0][:SHOWN_NAME_CHARACTERS]} cannot be set; a request "
            f"to this model can set {', '.join(sorted(settable)) or 'no variables'}",
        )


def make_template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an OpenAI message in the form that chat templates read.

    The content becomes one text. The arguments of a tool call, which are JSON text in the OpenAI
    API, become a mapping. transformers would keep only role and content.

    Raises: HTTPException (400) if a part of the content is not text.
    """
    plain = dict(message)
    content = plain.get("content")
    if isinstance(content, list):
        if any("text" not in part for part in content):
            raise HTTPException(400, "this model reads only text")
        content = "\n".join(part["text"] for part in content)
    plain["content"] = content or ""
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_parse_call(call) for call in plain["tool_calls"]]
    return plain


def _parse_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as a mapping. They may be in the call itself."""
    if call.get("function"):
        return {**call, "function": _parse_call(call["function"])}
    if isinstance(call.get("arguments"), str):
        return {**call, "arguments": parse_arguments(call["arguments"])}
    return dict(call)
