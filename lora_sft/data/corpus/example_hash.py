"""Two fingerprints of an example: one that its source row is drawn by, and one to compare it by.

A draw follows what the source row says alone (roles, contents, calls, tools), so that neither
another template nor a recipe's argument moves it to another split, and so that one question with
thinking and without it lies in one. It does not follow reasoning, which is the same answer's.

Two source rows hold the same example where the model would be shown the same, whatever format they
are written in and whatever stands beside it: an id in another column or in a message, a key that is
null or empty, the wish to learn a message or not. Reasoning counts wherever it stands, template
arguments as they reach the template (the recipe's and the row's together), and of other keys those
that the chat template names, for only then can they reach the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lora_sft.data.examples.conversation import (
    REASONING_KEYS,
    Conversation,
    Example,
    Message,
    TokenizedExample,
)
from lora_sft.data.examples.messages import find_call_arguments, find_call_name
from lora_sft.data.examples.thinking import separate_thinking
from lora_sft.data.templates.template_keys import TemplateKeys

DIGEST_BYTES = 16
# What a call always has, in one place or another, and what says only which call it is.
CALL_KEYS = frozenset(("function", "name", "arguments", "type", "id"))
# Reasoning is compared wherever it stands; a template may name `id` of quite another thing.
MESSAGE_KEYS = frozenset((*REASONING_KEYS, "id"))


class ExampleHasher:
    """Hashes examples as one chat template reads them, with the recipe's template arguments."""

    def __init__(self, keys: TemplateKeys, recipe_kwargs: Mapping[str, Any]) -> None:
        self._keys = keys
        self._recipe_kwargs = recipe_kwargs

    def hash_content(self, example: Example) -> bytes:
        """What `example` is drawn by; no template has a part in it."""
        return hash_json(type(example).__name__, _list_content(example))

    def hash_example(self, example: Example, content_hash: bytes) -> bytes:
        """What `example` is compared by; `content_hash` is the one it is drawn by."""
        if not isinstance(example, Conversation):
            return content_hash
        kwargs = self._keys.select_read({**self._recipe_kwargs, **example.template_kwargs})
        details = [self._list_details(message) for message in example.messages]
        return hash_json("example", [content_hash.hex(), details, kwargs])

    def _list_details(self, message: Message) -> list[Any]:
        """What of a message a draw does not follow."""
        reasoning, _ = separate_thinking(message)
        calls = [
            self._keys.select_read({**call, **call.get("function", call)}, exclude=CALL_KEYS)
            for call in message.tool_calls
        ]
        return [reasoning, self._keys.select_read(message.extras, exclude=MESSAGE_KEYS), calls]


def _list_content(example: Example) -> Any:
    if isinstance(example, Conversation):
        return [[_list_message(message) for message in example.messages], example.tools]
    return example.input_ids if isinstance(example, TokenizedExample) else vars(example)


def _list_message(message: Message) -> list[Any]:
    """A message without its thinking; calls in one form, whether their function stands in an
    object of its own or not."""
    _, said = separate_thinking(message)
    calls = [[find_call_name(call), find_call_arguments(call)] for call in message.tool_calls]
    return [message.role, said, calls]


def hash_json(kind: str, content: Any) -> bytes:
    """The fingerprint of something that JSON can write, whatever the order of its keys; `kind`
    tells equal texts apart."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).digest()
    return digest[:DIGEST_BYTES]
