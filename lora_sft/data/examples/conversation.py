"""What a source row becomes, whatever format it was written in.

Four records, because four things are learned in different ways: a conversation goes through a
chat template, a prompt with its completion and a plain text do not, and tokens are left as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINED_ROLE = "assistant"


REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Message:
    """One turn as the chat template reads it, and whether the source row asks to learn it.

    `extras` holds every other key of the message (`name`, `tool_call_id`,
    `reasoning_content`, ...): templates differ in what they read.
    """

    role: str
    content: str | None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    train: bool | None = None

    def as_template_input(self) -> dict[str, Any]:
        """The message as a chat template expects it: absent keys are left out, never null."""
        view: dict[str, Any] = {"role": self.role}
        if self.content is not None:
            view["content"] = self.content
        if self.tool_calls:
            view["tool_calls"] = [dict(call) for call in self.tool_calls]
        view.update((key, value) for key, value in self.extras.items() if value is not None)
        return view

    @property
    def reasoning(self) -> str:
        """The thinking that comes with the message in a field of its own, or an empty text."""
        if not self.extras:
            return ""
        values = (self.extras.get(key) for key in REASONING_KEYS)
        return next((value for value in values if isinstance(value, str)), "")


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template.

    `completion_start` is the index of the first message of the completion, where the source row
    drew that line; `template_kwargs` are the source row's own and win over the recipe's.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    completion_start: int | None = None


@dataclass(frozen=True)
class PromptCompletion:
    """A text and the text that follows it; no template comes between them."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """A text, learned from its first token to its end."""

    text: str


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids that were made elsewhere, and which of them are learned.

    `is_target` is None where the source row does not say; `role` names what the targets are.
    """

    input_ids: tuple[int, ...]
    is_target: tuple[bool, ...] | None
    role: str


Example = Conversation | PromptCompletion | PlainText | TokenizedExample
