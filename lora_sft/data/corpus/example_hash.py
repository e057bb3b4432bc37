"""Make two hashes of an example: one chooses its split, the other finds equal examples.

The content hash chooses the split. It covers roles, contents, tool calls and tools. It does not
cover reasoning or template arguments, and it does not depend on the chat template. So another
template or setting never moves a source row to another split, and one question with and without
reasoning stays in one split.

The example hash is equal for two source rows if the model would be shown the same. It covers the
content and also:

- reasoning, in a field or inside the content;
- the template arguments of recipe and row together, if the template reads them;
- other keys of a message that the chat template names. Only these can reach the model.

Neither hash depends on the row's format, on ids, on keys that are null or empty, or on which
messages are learned.
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
# The content hash covers name and arguments. `id` only identifies a call, and the others are the
# same in all calls.
CALL_KEYS = frozenset(("function", "name", "arguments", "type", "id"))
# Reasoning is compared separately. An `id` in the template's text may belong to something else.
MESSAGE_KEYS = frozenset((*REASONING_KEYS, "id"))


class ExampleHasher:
    """A hasher for examples, with one chat template and the recipe's template arguments."""

    def __init__(self, keys: TemplateKeys, recipe_kwargs: Mapping[str, Any]) -> None:
        self._keys = keys
        self._recipe_kwargs = recipe_kwargs

    def hash_content(self, example: Example) -> bytes:
        """Return the hash that chooses the split of `example`."""
        return hash_json(type(example).__name__, _list_content(example))

    def hash_example(self, example: Example, content_hash: bytes) -> bytes:
        """Return the hash that is equal for equal examples.

        Args:
            content_hash: The result of `hash_content` for this example.
        """
        if not isinstance(example, Conversation):
            return content_hash
        kwargs = self._keys.select_read({**self._recipe_kwargs, **example.template_kwargs})
        details = [self._list_details(message) for message in example.messages]
        return hash_json("example", [content_hash.hex(), details, kwargs])

    def _list_details(self, message: Message) -> list[Any]:
        """Return the parts of a message that only the example hash covers."""
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
    """Return role, visible content and tool calls of a message.

    A call gives the same result with or without a `function` object around name and arguments.
    """
    _, visible = separate_thinking(message)
    calls = [[find_call_name(call), find_call_arguments(call)] for call in message.tool_calls]
    return [message.role, visible, calls]


def hash_json(kind: str, content: Any) -> bytes:
    """Return the hash of a JSON value. The order of its keys does not matter.

    Args:
        kind: A name that separates equal values of different kinds.
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(f"{kind} {text}".encode("utf-8", "surrogatepass")).digest()
    return digest[:DIGEST_BYTES]
