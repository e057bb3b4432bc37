"""Thinking blocks: finding one that a prompt opened, and writing what remains to be said in it.

Some templates (R1-distill, DeepSeek-V3, Nemotron) open the block in the generation prompt and drop
it from the render, so the render is not what the model must produce. The target is then written
from the message itself: reasoning, the closing mark, the answer.
"""

from __future__ import annotations

from dataclasses import replace

from lora_sft.data.conversation import REASONING_KEYS, Message

# The marks that published templates put around reasoning.
THINKING_MARKS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<reasoning>": "</reasoning>",
    "<thought>": "</thought>",
}


def find_open_mark(text: str) -> str | None:
    """The opening mark of the last thinking block in `text`, if nothing closes it."""
    places = {mark: text.rfind(mark) for mark in THINKING_MARKS}
    mark = max(places, key=lambda each: places[each])
    is_open = places[mark] >= 0 and THINKING_MARKS[mark] not in text[places[mark] :]
    return mark if is_open else None


def is_thinking_closed(generation_prompt: str) -> bool:
    """Whether the prompt already ended the thinking (`enable_thinking: false` does that)."""
    has_mark = any(mark in generation_prompt for mark in THINKING_MARKS.values())
    return has_mark and find_open_mark(generation_prompt) is None


def has_thinking(message: Message) -> bool:
    """Whether the turn reasons, in a field of its own or inside its content."""
    content = message.content or ""
    return bool(message.reasoning.strip()) or any(
        closing in content for closing in THINKING_MARKS.values()
    )


def find_inline_thinking(content: str) -> tuple[str, str] | None:
    """What a thinking block at the content's start holds, and what follows it.

    As templates split it themselves: without the line breaks around either.
    """
    text = content.lstrip()
    mark = next((mark for mark in THINKING_MARKS if text.startswith(mark)), None)
    if mark is None:
        return None
    inside, closed, after = text.removeprefix(mark).partition(THINKING_MARKS[mark])
    return (inside.strip("\n"), after.lstrip("\n")) if closed else None


def split_inline_thinking(message: Message) -> Message:
    """The message with a thinking block at its content's start moved to `reasoning_content`."""
    inline = None if message.reasoning else find_inline_thinking(message.content or "")
    if inline is None:
        return message
    reasoning, content = inline
    extras = {**message.extras, "reasoning_content": reasoning}
    return replace(message, content=content, extras=extras)


def without_thinking(message: Message) -> Message:
    """The message as a history that hides reasoning shows it."""
    split = split_inline_thinking(message)
    extras = {key: value for key, value in split.extras.items() if key not in REASONING_KEYS}
    return replace(split, extras=extras)


def write_rest_of_turn(message: Message, prompt: str, generation_prompt: str) -> str:
    """What the model must produce after `prompt`, stop token left out.

    `generation_prompt` is the part of it that opens the answer. Where it opened a thinking block,
    the reasoning and the closing mark come first; line breaks follow the prompt's own.
    """
    content = message.content or ""
    mark = find_open_mark(generation_prompt)
    if mark is None:
        return content
    closing = THINKING_MARKS[mark]
    before, closed, after = content.partition(closing)
    if closed:  # the thinking stands inside the content: keep it as it was written
        inside = before.lstrip().removeprefix(mark)
        return (inside.lstrip("\n") if prompt.endswith("\n") else inside) + closing + after
    line_break = "\n" if prompt.endswith("\n") else ""
    reasoning = message.reasoning.strip("\n") if line_break else message.reasoning
    return f"{reasoning}{line_break}{closing}{line_break * 2}{content}"
