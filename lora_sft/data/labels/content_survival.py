"""Whether a render holds what its messages say: templates drop things without a word.

Every text of a learned turn (content, reasoning, each call's name, keys and values) needs a place
of its own in what is learned; that a part of another text looks the same is not enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import Message
from lora_sft.data.examples.messages import find_call_arguments, find_call_name
from lora_sft.data.examples.thinking import THINKING_MARKS

MARK_NAMES = chain.from_iterable(THINKING_MARKS.items())
THINKING_MARK = re.compile(f"({'|'.join(map(re.escape, MARK_NAMES))})")
CLOSING_MARKS = frozenset(THINKING_MARKS.values())
# What some way of quoting a text writes otherwise than it is.
ESCAPED_SOMEWHERE = re.compile(r"""["'\\]|[^ -~]""")
EXCERPT_CHARACTERS = 80

# One text in every form in which a template may write it, the plain one first.
Forms: TypeAlias = Sequence[str]


def check_content_survives(message: Message, target: str, index: int) -> None:
    """What the turn holds must be in what is learned: templates drop things without a word.

    Content may be split at its thinking marks, which templates lay out anew.

    Raises: RowDropped.
    """
    lost = find_lost(_list_required(message, target), target)
    if lost:
        excerpt = lost[:EXCERPT_CHARACTERS]
        raise RowDropped("content_lost", f"message {index} is rendered without {excerpt!r}")


def find_lost(required: Iterable[Forms], target: str) -> str:
    """The first text without a place of its own in `target`, or nothing.

    No two share a place: two calls of one function are there twice, or one of them is lost. They
    are looked for in their order, which is that of nearly every render, and where that fails the
    longest first, so that none takes a part of another; of two as long the one with more forms
    comes last (`true` may also be `True`, the text "true" may not).
    """
    wanted = [forms for forms in required if forms[0]]
    if _find_unplaced(wanted, target) is None:
        return ""
    wanted.sort(key=lambda forms: (-len(forms[0]), len(forms)))
    for forms in wanted:  # what is nowhere says more than what is there too seldom
        if not any(form in target for form in forms):
            return forms[0]
    unplaced = _find_unplaced(wanted, target)
    return unplaced[0] if unplaced is not None else ""


def _find_unplaced(wanted: Sequence[Forms], target: str) -> Forms | None:
    """The first that finds no free place, each looking behind the one before it and then from the
    beginning. Texts that stand in the order of `wanted` are all found, in one way through."""
    taken, end = bytearray(len(target)), 0
    for forms in wanted:
        place = _find_free(forms, target, taken, end) or _find_free(forms, target, taken, 0)
        if place is None:
            return forms
        start, end = place
        taken[start:end] = b"\1" * (end - start)
    return None


def _find_free(forms: Forms, target: str, taken: bytearray, start: int) -> tuple[int, int] | None:
    """The free place from `start` on that ends first, whichever form stands there."""
    place, limit = None, len(target)
    for form in forms:
        at = target.find(form, start, limit)
        while at >= 0 and (hit := taken.find(1, at, at + len(form))) >= 0:
            at = target.find(form, hit + 1, limit)
        if at >= 0:
            limit = at + len(form) - 1
            place = at, limit + 1
    return place


def _list_required(message: Message, target: str) -> Iterator[Forms]:
    """What the turn holds, in the order in which it is mostly rendered."""
    content = (message.content or "").strip()
    reasoning = message.reasoning.strip()
    if reasoning and reasoning not in _list_inline_thoughts(content):
        yield (reasoning,)
    if content in target:
        yield (content,)
    else:
        yield from ((piece.strip(),) for piece in THINKING_MARK.split(content)[::2])
    for call in message.tool_calls:
        yield from list_call_texts(call)


def _list_inline_thoughts(content: str) -> list[str]:
    """What a closing mark follows in the content; the prompt may have opened it."""
    parts = THINKING_MARK.split(content)
    ended = zip(parts[::2], parts[1::2], strict=False)
    return [thought.strip() for thought, mark in ended if mark in CLOSING_MARKS]


def list_call_texts(call: Mapping[str, Any]) -> Iterator[Forms]:
    """What a rendered tool call must hold: the name, and every key and value of the arguments."""
    yield (str(find_call_name(call)),)
    for value in walk_values(find_call_arguments(call)):
        yield _list_written_forms(value)


def _list_written_forms(value: str | float) -> Forms:
    """A tool argument as a template may write it: plain, as in JSON, or as in Python."""
    if isinstance(value, bool):
        return json.dumps(value), str(value)
    if not isinstance(value, str):
        return (json.dumps(value),)
    if not ESCAPED_SOMEWHERE.search(value):
        return (value.strip(),)
    in_json = [json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    forms = (value, *in_json, repr(value)[1:-1], _quote_as_code(value))
    return list(dict.fromkeys(form.strip() for form in forms))


def _quote_as_code(value: str) -> str:
    """What stands between single quotes where a template writes a call as code (LFM2's macro
    `format_arg_value`): unlike `repr` it never takes double quotes, and leaves tabs as they are."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return escaped.replace("\n", "\\n").replace("\r", "\\r")


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
