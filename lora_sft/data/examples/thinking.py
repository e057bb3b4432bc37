"""Find the reasoning of an answer, and write a turn whose thinking block the prompt has opened.

The reasoning is in a field of the message, or in its content inside a thinking block such as
`<think>...</think>`. Some templates (R1-distill, DeepSeek-V3, Nemotron) open the block in the
generation prompt, but leave it out when they render the answer. So the rendered text differs from
the text that the model must produce. For these templates the target is written from the message:
the reasoning, the closing mark, the answer.
"""

from __future__ import annotations

from dataclasses import replace

from lora_sft.data.examples.conversation import REASONING_KEYS, TRAINED_ROLE, Message

# The opening and closing marks of thinking blocks in published templates.
THINKING_MARKS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<reasoning>": "</reasoning>",
    "<thought>": "</thought>",
}


def find_open_mark(text: str) -> str | None:
    """Return the opening mark of the last thinking block in `text`; None if it is closed."""
    places = {mark: text.rfind(mark) for mark in THINKING_MARKS}
    mark = max(places, key=lambda each: places[each])
    is_open = places[mark] >= 0 and THINKING_MARKS[mark] not in text[places[mark] :]
    return mark if is_open else None


def is_thinking_closed(generation_prompt: str) -> bool:
    """Return whether the prompt closes the thinking block, as with `enable_thinking: false`."""
    has_mark = any(mark in generation_prompt for mark in THINKING_MARKS.values())
    return has_mark and find_open_mark(generation_prompt) is None


def has_thinking(message: Message) -> bool:
    """Return whether an answer holds reasoning, in a field or inside its content."""
    return message.role == TRAINED_ROLE and (
        bool(message.reasoning.strip()) or _find_closing(message.content or "") is not None
    )


def split_thinking_block(message: Message) -> tuple[str, str] | None:
    """Return the reasoning inside an answer's content and the text after it, or None.

    A closing mark without an opening mark may be a quotation. It ends the reasoning only if a field
    holds the same reasoning. A message of another role only quotes such marks, so it gives None.
    """
    if message.role != TRAINED_ROLE or not message.content:
        return None
    block = _split_after_block(message.content)
    if block is not None or not message.reasoning.strip():
        return block
    closed = _split_at_closing(message.content)
    is_repeated = closed is not None and closed[0].strip() == message.reasoning.strip()
    return closed if is_repeated else None


def _split_after_block(content: str) -> tuple[str, str] | None:
    """Return the inside of the thinking block that begins the content, and the text after it.

    Line breaks around both are removed, as templates do it. None if there is no complete block.
    """
    text = content.lstrip()
    mark = next((mark for mark in THINKING_MARKS if text.startswith(mark)), None)
    if mark is None:
        return None
    inside, closed, after = text.removeprefix(mark).partition(THINKING_MARKS[mark])
    return (inside.strip("\n"), after.lstrip("\n")) if closed else None


def _split_at_closing(content: str) -> tuple[str, str] | None:
    """Return the text before the first closing mark and the text after it, or None."""
    mark = _find_closing(content)
    if mark is None:
        return None
    inside, _, after = content.partition(mark)
    return inside.strip("\n"), after.lstrip("\n")


def _find_closing(content: str) -> str | None:
    """Return the closing mark that comes first in the content, or None."""
    found = [mark for mark in THINKING_MARKS.values() if mark in content]
    return min(found, key=content.index, default=None)


def separate_thinking(message: Message) -> tuple[str, str]:
    """Return the reasoning and the visible answer of one message.

    The result is used to compare messages. Here a closing mark without an opening mark always ends
    the reasoning, as in templates that split the content themselves.
    """
    content = message.content or ""
    block = split_thinking_block(message)
    if block is None and has_thinking(message) and not message.reasoning.strip():
        block = _split_at_closing(content)
    reasoning, visible = block or ("", content)
    return message.reasoning.strip() or reasoning.strip(), visible


def move_thinking_to_field(message: Message) -> Message:
    """Return the message with the reasoning of its content moved to `reasoning_content`.

    If a field already holds the reasoning, it is only removed from the content.
    """
    block = split_thinking_block(message)
    if block is None:
        return message
    reasoning, content = block
    own = {} if message.reasoning.strip() else {"reasoning_content": reasoning}
    return replace(message, content=content, extras={**message.extras, **own})


def without_reasoning_fields(message: Message) -> Message:
    """Return the message without its reasoning fields. The content does not change."""
    extras = {key: value for key, value in message.extras.items() if key not in REASONING_KEYS}
    return replace(message, extras=extras)


def without_thinking(message: Message) -> Message:
    """Return the message without any reasoning, as a template that hides reasoning shows it."""
    return without_reasoning_fields(move_thinking_to_field(message))


def write_rest_of_turn(message: Message, prompt: str, generation_prompt: str) -> str:
    """Return the text that the model must produce after `prompt`, without the stop token.

    If the prompt opens a thinking block, the text begins with the reasoning and the closing mark.
    Line breaks surround the mark only if the prompt ends with a line break.

    Args:
        message: The answer.
        prompt: The whole text before the answer.
        generation_prompt: The last part of `prompt`, which opens the answer.
    """
    content = message.content or ""
    mark = find_open_mark(generation_prompt)
    if mark is None:
        return content
    closing = THINKING_MARKS[mark]
    before, closed, after = content.partition(closing)
    if closed:  # the content holds the thinking block: keep it as it was written
        inside = before.lstrip().removeprefix(mark)
        return (inside.lstrip("\n") if prompt.endswith("\n") else inside) + closing + after
    line_break = "\n" if prompt.endswith("\n") else ""
    reasoning = message.reasoning.strip("\n") if line_break else message.reasoning
    return f"{reasoning}{line_break}{closing}{line_break * 2}{content}"
