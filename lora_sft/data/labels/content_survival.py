"""Check that a rendered text contains everything that its messages contain.

A chat template may leave out a part of a message without an error. Each text of a learned turn
(content, reasoning, each call's name, keys and values) must have its own place in the target. An
occurrence inside the place of another text does not count.
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
# Characters that JSON or Python code may write as an escape sequence.
ESCAPED_SOMEWHERE = re.compile(r"""["'\\]|[^ -~]""")
EXCERPT_CHARACTERS = 80

# All spellings in which a template may write one text. The plain spelling comes first.
Spellings: TypeAlias = Sequence[str]


def check_content_survives(message: Message, target: str, index: int) -> None:
    """Check that `target` contains every text of the message.

    Templates write thinking marks in their own way. So a content that is not found as a whole may
    be found in parts, split at its thinking marks.

    Raises: RowDropped if a text is missing.
    """
    lost = find_lost_text(_list_required(message, target), target)
    if lost:
        excerpt = lost[:EXCERPT_CHARACTERS]
        detail = f"the chat template leaves out {excerpt!r} of message {index}"
        raise RowDropped("content_lost", detail)


def find_lost_text(required: Iterable[Spellings], target: str) -> str:
    """Return the first text that has no place of its own in `target`, or an empty text.

    Two texts never share a place. If an assistant calls one function twice, the function's name
    must occur twice.

    The texts are searched for in their given order first, because nearly every template keeps it.
    If that fails, the longest text is searched for first: a short text then cannot take a part of a
    long text's place. Of two equally long texts, the one with more spellings comes last: the
    boolean `true` may also be written `True`, but the text "true" may not.
    """
    wanted = [spellings for spellings in required if spellings[0]]
    if _find_unplaced(wanted, target) is None:
        return ""
    wanted.sort(key=lambda spellings: (-len(spellings[0]), len(spellings)))
    # A text that occurs nowhere explains the loss better than a text that occurs too rarely.
    for spellings in wanted:
        if not any(spelling in target for spelling in spellings):
            return spellings[0]
    unplaced = _find_unplaced(wanted, target)
    return unplaced[0] if unplaced is not None else ""


def _find_unplaced(wanted: Sequence[Spellings], target: str) -> Spellings | None:
    """Return the first text for which no free place is left in `target`, or None.

    Each search starts after the previous text's place, and then again at the beginning. Texts that
    occur in the order of `wanted` are therefore found in one pass over `target`.
    """
    taken, end = bytearray(len(target)), 0
    for spellings in wanted:
        place = _find_free(spellings, target, taken, end) or _find_free(spellings, target, taken, 0)
        if place is None:
            return spellings
        start, end = place
        taken[start:end] = b"\1" * (end - start)
    return None


def _find_free(
    spellings: Spellings, target: str, taken: bytearray, start: int
) -> tuple[int, int] | None:
    """Return the free place that ends first, from `start` on, in any of the spellings."""
    place, limit = None, len(target)
    for spelling in spellings:
        at = target.find(spelling, start, limit)
        while at >= 0 and (hit := taken.find(1, at, at + len(spelling))) >= 0:
            at = target.find(spelling, hit + 1, limit)
        if at >= 0:
            limit = at + len(spelling) - 1
            place = at, limit + 1
    return place


def _list_required(message: Message, target: str) -> Iterator[Spellings]:
    """Yield every text of the turn, in the order in which most templates render them."""
    content = (message.content or "").strip()
    reasoning = message.reasoning.strip()
    if reasoning and reasoning not in _list_inline_reasoning(content):
        yield (reasoning,)
    if content in target:
        yield (content,)
    else:
        yield from ((piece.strip(),) for piece in THINKING_MARK.split(content)[::2])
    for call in message.tool_calls:
        yield from list_call_texts(call)


def _list_inline_reasoning(content: str) -> list[str]:
    """Return each part of the content that a closing thinking mark ends.

    The opening mark may be missing: the prompt may have written it.
    """
    parts = THINKING_MARK.split(content)
    ended = zip(parts[::2], parts[1::2], strict=False)
    return [reasoning.strip() for reasoning, mark in ended if mark in CLOSING_MARKS]


def list_call_texts(call: Mapping[str, Any]) -> Iterator[Spellings]:
    """Yield the texts of a tool call: its name, and every key and value of its arguments."""
    yield (str(find_call_name(call)),)
    for value in walk_values(find_call_arguments(call)):
        yield _list_spellings(value)


def _list_spellings(value: str | float) -> Spellings:
    """Return a tool argument as a template may write it: plain, as in JSON, and as in Python."""
    if isinstance(value, bool):
        return json.dumps(value), str(value)
    if not isinstance(value, str):
        return (json.dumps(value),)
    if not ESCAPED_SOMEWHERE.search(value):
        return (value.strip(),)
    in_json = [json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    spellings = (value, *in_json, repr(value)[1:-1], _quote_as_code(value))
    return list(dict.fromkeys(spelling.strip() for spelling in spellings))


def _quote_as_code(value: str) -> str:
    """Return the escaped form of a text between single quotes in a call that is written as code.

    Unlike `repr`, this never uses double quotes and does not escape tabs.

    Source: the macro `format_arg_value` in the template of LFM2.
    """
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return escaped.replace("\n", "\\n").replace("\r", "\\r")


def walk_values(value: Any) -> Iterator[str | float]:
    """Yield every key, text, number and boolean of a nested value."""
    if isinstance(value, str | int | float):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from walk_values(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk_values(item)
