"""Where a template shows an earlier turn, in a history that it writes otherwise than it was served.

A message is found by rendering the conversation once more with a mark in place of its content: what
differs between the two texts is the content. No template has to be known for that, and no other
message is taken for it, however alike they are.
"""

from __future__ import annotations

from lora_sft.data.rendering import OpenedChat
from lora_sft.data.thinking import THINKING_MARKS

MARK = "\U0010fffd"  # a private character beyond those that stand for special tokens


def find_shown_turn(
    chat: OpenedChat, index: int, whole: str, prompt: str, stop: str
) -> tuple[int, int] | None:
    """The part of `whole` that shows answer `index`, without its header; None where it cannot be
    told.

    It begins where the history has what the served `prompt` ends in (a thinking block that only the
    prompt opens left out), and ends with the turn's own `stop`; without it where the history ends
    the turn otherwise, so that no wrong end is learned.
    """
    before = _find_content(chat, index - 1, whole)
    served = _find_content(chat, index - 1, prompt, num_messages=index)
    content = _find_content(chat, index, whole)
    if before is None or served is None or content is None:
        return None
    header = prompt[served[1] :]
    shown = find_first_difference(header, whole[before[1] :])
    if not _is_only_thinking(header[shown:]):
        return None
    limit = _find_limit(chat, index, whole)
    place = whole.find(stop, content[1], limit) if limit is not None else -1
    if place < 0 and (limit is None or chat.has_calls(index)):
        return None
    start = min(before[1] + shown, content[0])
    return start, place + len(stop) if place >= 0 else content[1]


def _find_limit(chat: OpenedChat, index: int, whole: str) -> int | None:
    """Where the content after message `index` begins, or the text ends."""
    if index + 1 == chat.num_messages:
        return len(whole)
    following = _find_content(chat, index + 1, whole)
    return None if following is None else following[0]


def _find_content(
    chat: OpenedChat, index: int, text: str, num_messages: int | None = None
) -> tuple[int, int] | None:
    """Where a message's content is shown in `text`: the whole conversation, or the prompt that its
    first messages make."""
    is_prompt, count = num_messages is not None, num_messages or chat.num_messages
    marked = chat.render(count, served=is_prompt, contents={index: MARK})
    start = find_first_difference(text, marked)
    rest = min(len(text), len(marked)) - start
    tail = min(find_first_difference(text[::-1], marked[::-1]), rest)
    if marked[start : len(marked) - tail].strip() != MARK:
        return None
    return start, len(text) - tail


def _is_only_thinking(text: str) -> bool:
    for marks in THINKING_MARKS.items():
        for mark in marks:
            text = text.replace(mark, "")
    return not text.strip()


def find_first_difference(left: str, right: str) -> int:
    """The first position at which two texts differ; the shorter's end where none does."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
