"""Whether a render holds what its messages say: templates drop things without a word.

Every text of a learned turn (content, reasoning, each call's name, keys and values) needs a place
of its own in what is learned; that a part of another text looks the same is not enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_sft.data.conversation import Message
from lora_sft.data.drops import RowDropped
from lora_sft.data.messages import find_call_arguments, find_call_name

THINK_MARKS = re.compile("</?think>")
EXCERPT_CHARACTERS = 80
TAKEN = "\0"  # stands where a text was found, so that no other is found there


def check_content_survives(message: Message, target: str, index: int) -> None:
    """What the turn holds must be in what is learned: templates drop things without a word.

    Content may be split at its thinking marks, which templates lay out anew.

    Raises: RowDropped.
    """
    lost = find_lost(_list_required(message, target), target)
    if lost:
        excerpt = lost[:EXCERPT_CHARACTERS]
        raise RowDropped("content_lost", f"message {index} is rendered without {excerpt!r}")


def find_lost(required: Iterable[Sequence[str]], target: str) -> str:
    """The first text without a place of its own in `target`, or nothing.

    Each comes in the forms in which it may be written. The longest are placed first, and no two
    share a place: two calls of one function are there twice, or one of them is lost.
    """
    wanted = sorted((forms for forms in required if forms[0]), key=lambda forms: -len(forms[0]))
    for forms in wanted:  # what is nowhere says more than what is there too seldom
        if not any(form in target for form in forms):
            return forms[0]
    for forms in wanted if len(wanted) > 1 else ():
        form = next((form for form in forms if form in target), None)
        if form is None:
            return forms[0]
        target = target.replace(form, TAKEN, 1)
    return ""


def _list_required(message: Message, target: str) -> Iterator[Sequence[str]]:
    content = (message.content or "").strip()
    pieces = [content] if content in target else THINK_MARKS.split(content)
    inline = [piece.strip() for piece in pieces]
    yield from ((piece,) for piece in inline)
    reasoning = message.reasoning.strip()
    if not any(reasoning in piece for piece in inline):
        yield (reasoning,)
    for call in message.tool_calls:
        yield from list_call_texts(call)


def list_call_texts(call: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """What a rendered tool call must hold: the name, and every key and value of the arguments."""
    yield (str(find_call_name(call)),)
    for value in walk_values(find_call_arguments(call)):
        yield _list_written_forms(value)


def _list_written_forms(value: str | float) -> Sequence[str]:
    """A tool argument as a template may write it: plain, or as in JSON."""
    if not isinstance(value, str):
        return json.dumps(value), str(value)
    escaped = [json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    return [form.strip() for form in (value, *escaped)]


def walk_values(value: Any) -> Iterator[str | float]:
    """Every key, text, number and truth value."""
    if isinstance(value, str | int | float):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from walk_values(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk_values(item)
