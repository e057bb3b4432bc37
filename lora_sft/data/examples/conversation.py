"""The examples that source rows become: the same four records for every format.

There are four, because each kind is learned in a different way. A conversation goes through a chat
template. A prompt with its completion, and a plain text, do not. Token ids stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINED_ROLE = "assistant"
# Fields that hold reasoning. If several do, the first in this order is used.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        extras: Every other key of the message (`name`, `tool_call_id`, `reasoning_content`, ...).
            Chat templates read different keys, so all of them are kept.
        train: Whether the source row asks to learn the message; None if it does not say.
    """

    role: str
    content: str | None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    train: bool | None = None

    def as_template_input(self) -> dict[str, Any]:
        """Return the message for a chat template. A key without a value is left out, never null."""
        view: dict[str, Any] = {"role": self.role}
        if self.content is not None:
            view["content"] = self.content
        if self.tool_calls:
            view["tool_calls"] = [dict(call) for call in self.tool_calls]
        view.update((key, value) for key, value in self.extras.items() if value is not None)
        return view

    @property
    def reasoning(self) -> str:
        """The reasoning from a field of the message; empty if no field holds any."""
        if not self.extras:
            return ""
        values = (self.extras.get(key) for key in REASONING_KEYS)
        return next((value for value in values if isinstance(value, str)), "")


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template.

    Attributes:
        template_kwargs: The template arguments of the source row. They override the recipe's.
        completion_start: The index of the first message of the completion; None if the source row
            does not separate prompt and completion.
        expected: The accepted answers of a task's row, as JSON; None for chats.
        shorten: Returns the conversation with only a share of its longest input; None for chats.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    completion_start: int | None = None
    expected: str | None = None
    shorten: Callable[[float], Conversation] | None = None


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and the completion that directly follows it. No chat template is used."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """A text that is learned from its first token to its end."""

    text: str


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids from the source row.

    Attributes:
        is_target: Whether each token is learned; None if the source row does not say.
        role: The role of the learned tokens, for people to read.
    """

    input_ids: tuple[int, ...]
    is_target: tuple[bool, ...] | None
    role: str


Example = Conversation | PromptCompletion | PlainText | TokenizedExample
