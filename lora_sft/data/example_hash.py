"""The fingerprint of what a row holds, by which equal examples are known and splits are drawn.

Two rows hold the same example where the model would be shown the same, whatever format they are
written in and whatever stands beside it: an id in another column or in a message, a key that is
null, the wish to learn a message or not. A message's key counts where the chat template names it,
for only then can it reach the model. (A template that prints whole messages names no key; what
differs only there counts as the same, which keeps a test row out of training rather than in it.)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from lora_sft.data.conversation import (
    REASONING_KEYS,
    Conversation,
    Example,
    Message,
    TokenizedExample,
)
from lora_sft.data.messages import find_call_arguments, find_call_name

DIGEST_BYTES = 16
WORD = re.compile(r"\w+")
# What a call always has, in one place or another, and what says only that it is a call.
CALL_KEYS = frozenset(("function", "name", "arguments", "type"))


class ExampleHasher:
    """Hashes examples as one chat template reads them; `template` is the tokenizer's."""

    def __init__(self, template: str | Mapping[str, str] | None) -> None:
        named = template.values() if isinstance(template, Mapping) else [template or ""]
        self._text = "\n".join(named)
        self._words = frozenset(WORD.findall(self._text))

    def hash(self, example: Example) -> bytes:
        """The fingerprint of `example`, whatever the order of its keys."""
        return hash_content(type(example).__name__, self._list_content(example))

    def _list_content(self, example: Example) -> Any:
        if isinstance(example, Conversation):
            messages = [self._list_message(message) for message in example.messages]
            return [messages, example.tools, example.template_kwargs]
        if isinstance(example, TokenizedExample):
            return example.input_ids
        return vars(example)

    def _list_message(self, message: Message) -> list[Any]:
        calls = [self._list_call(call) for call in message.tool_calls]
        extras = self._keep_read(message.extras, but=REASONING_KEYS) if message.extras else {}
        return [message.role, message.content or "", message.reasoning, calls, extras]

    def _list_call(self, call: Mapping[str, Any]) -> list[Any]:
        """The call in one form, whether its function stands in an object of its own or not."""
        inner = call.get("function", call)
        extras = self._keep_read({**call, **inner}, but=CALL_KEYS)
        return [find_call_name(call), find_call_arguments(call), extras]

    def _keep_read(
        self, values: Mapping[str, Any], but: frozenset[str] | tuple[str, ...]
    ) -> dict[str, Any]:
        """What is not null and under a key that the template names."""
        return {
            key: value
            for key, value in values.items()
            if value is not None and key not in but and self._names(key)
        }

    def _names(self, key: str) -> bool:
        """Whether `key` is a whole word of the template."""
        if WORD.fullmatch(key):
            return key in self._words
        return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", self._text) is not None


def hash_content(kind: str, content: Any) -> bytes:
    """The fingerprint of something that JSON can write; `kind` tells equal texts apart."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).digest()
    return digest[:DIGEST_BYTES]
