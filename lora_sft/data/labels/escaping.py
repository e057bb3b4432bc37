"""Special-token strings in content, kept as ordinary text (`special_tokens_in_content: escape`).

A tokenizer turns `<|im_end|>` into its control token wherever it stands, so content could end a
turn. Each such string is replaced by one private character before the template is rendered, and
put back afterwards as the tokens of its plain spelling. Servers that escape do the same
(transformers 5.23, `sanitize_control_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import Conversation

FIRST_STAND_IN, LAST_STAND_IN = 0xE000, 0xF8FF  # Unicode's private use area
STAND_INS = re.compile(f"[{chr(FIRST_STAND_IN)}-{chr(LAST_STAND_IN)}]")


@dataclass(frozen=True)
class EscapedConversation:
    """A conversation without special-token strings, and what each private character stands for."""

    conversation: Conversation
    stand_ins: Mapping[str, str]


def escape_special_tokens(
    conversation: Conversation, special: re.Pattern[str]
) -> EscapedConversation:
    """Replace every special-token string in a conversation's messages, tools and template kwargs:
    all that it writes and the template may render, roles included.

    Raises: RowDropped where the content uses private characters itself.
    """
    characters: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        return characters.setdefault(match.group(), chr(FIRST_STAND_IN + len(characters)))

    def escape(value: Any) -> Any:
        if isinstance(value, str):
            if STAND_INS.search(value):
                raise RowDropped("special_tokens", "the content has private-use characters")
            return special.sub(stand_in, value)
        if isinstance(value, Mapping):
            return {escape(key): escape(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(escape(item) for item in value)
        return value

    messages = tuple(
        replace(
            message,
            role=escape(message.role),
            content=escape(message.content),
            tool_calls=escape(message.tool_calls),
            extras=escape(message.extras),
        )
        for message in conversation.messages
    )
    escaped = replace(
        conversation,
        messages=messages,
        tools=escape(conversation.tools),
        template_kwargs=escape(conversation.template_kwargs),
    )
    return EscapedConversation(escaped, {mark: text for text, mark in characters.items()})
