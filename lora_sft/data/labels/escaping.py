"""Keep special-token strings in content as ordinary text (`special_tokens_in_content: escape`).

A tokenizer turns `<|im_end|>` into a control token wherever it occurs, so a content could end its
own turn. Before the template is rendered, each such string is replaced by a placeholder: one
character of Unicode's private use area. After rendering, each placeholder becomes the tokens of the
string's plain spelling. Servers that escape content do the same (transformers 5.23,
`sanitize_control_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import Conversation

FIRST_PLACEHOLDER, LAST_PLACEHOLDER = 0xE000, 0xF8FF  # Unicode's private use area
PLACEHOLDERS = re.compile(f"[{chr(FIRST_PLACEHOLDER)}-{chr(LAST_PLACEHOLDER)}]")


@dataclass(frozen=True)
class EscapedConversation:
    """A conversation with placeholders, and the special-token string that each one replaces."""

    conversation: Conversation
    placeholders: Mapping[str, str]


def escape_special_tokens(
    conversation: Conversation, special: re.Pattern[str]
) -> EscapedConversation:
    """Replace every special-token string of a conversation by a placeholder.

    This covers every text that the template may render: roles, contents, tool calls, other keys of
    a message, tools and template arguments.

    Raises: RowDropped if a text already contains a private-use character.
    """
    characters: dict[str, str] = {}

    def get_placeholder(match: re.Match[str]) -> str:
        return characters.setdefault(match.group(), chr(FIRST_PLACEHOLDER + len(characters)))

    def escape(value: Any) -> Any:
        if isinstance(value, str):
            if PLACEHOLDERS.search(value):
                raise RowDropped("special_tokens", "the content has private-use characters")
            return special.sub(get_placeholder, value)
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
    strings = {placeholder: string for string, placeholder in characters.items()}
    return EscapedConversation(escaped, strings)
