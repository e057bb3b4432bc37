"""Thinking blocks: finding one that a prompt opened, and writing what remains to be said in it.

Some templates (R1-distill, DeepSeek-V3, Nemotron) open the block in the generation prompt and drop
it from the render, so the render is not what the model must produce. The target is then written
from the message itself: reasoning, the closing mark, the answer.
"""

from __future__ import annotations

from dataclasses import replace

from lora_sft.data.examples.conversation import REASONING_KEYS, TRAINED_ROLE, Message

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
    """Whether the answer reasons, in a field of its own or inside its content."""
    return message.role == TRAINED_ROLE and (
        bool(message.reasoning.strip()) or _find_closing(message.content or "") is not None
    )


def find_thinking(message: Message) -> tuple[str, str] | None:
    """What an answer's content thinks before it answers, and what follows.

    A closing mark that nothing opens may be one that the answer speaks of: it ends a thought only
    where a field says the same. Others than answers quote such marks, and do not think.
    """
    if message.role != TRAINED_ROLE or not message.content:
        return None
    block = _find_block(message.content)
    if block is not None or not message.reasoning.strip():
        return block
    closed = _split_at_closing(message.content)
    is_said_twice = closed is not None and closed[0].strip() == message.reasoning.strip()
    return closed if is_said_twice else None


def _find_block(content: str) -> tuple[str, str] | None:
    """What a thinking block at the content's start holds, and what follows it.

    As templates split it themselves: without the line breaks around either.
    """
    text = content.lstrip()
    mark = next((mark for mark in THINKING_MARKS if text.startswith(mark)), None)
    if mark is None:
        return None
    inside, closed, after = text.removeprefix(mark).partition(THINKING_MARKS[mark])
    return (inside.strip("\n"), after.lstrip("\n")) if closed else None


def _split_at_closing(content: str) -> tuple[str, str] | None:
    """What stands before the first closing mark, and what follows it."""
    mark = _find_closing(content)
    if mark is None:
        return None
    inside, _, after = content.partition(mark)
    return inside.strip("\n"), after.lstrip("\n")


def _find_closing(content: str) -> str | None:
    """The closing mark that comes first, if there is any."""
    found = [mark for mark in THINKING_MARKS.values() if mark in content]
    return min(found, key=content.index, default=None)


def separate_thinking(message: Message) -> tuple[str, str]:
    """What an answer thinks, wherever it says so, and what it says then.

    For telling answers apart: a closing mark that nothing opens ends a thought here, as it does
    for templates that split a content themselves.
    """
    content = message.content or ""
    block = find_thinking(message)
    if block is None and has_thinking(message) and not message.reasoning.strip():
        block = _split_at_closing(content)
    thought, said = block or ("", content)
    return message.reasoning.strip() or thought.strip(), said


def split_inline_thinking(message: Message) -> Message:
    """The message with what its content thinks moved to `reasoning_content`, unless a field says
    it already."""
    block = find_thinking(message)
    if block is None:
        return message
    reasoning, content = block
    own = {} if message.reasoning.strip() else {"reasoning_content": reasoning}
    return replace(message, content=content, extras={**message.extras, **own})


def without_reasoning_fields(message: Message) -> Message:
    """The message with what its content says alone."""
    extras = {key: value for key, value in message.extras.items() if key not in REASONING_KEYS}
    return replace(message, extras=extras)


def without_thinking(message: Message) -> Message:
    """The message as a history that hides reasoning shows it."""
    return without_reasoning_fields(split_inline_thinking(message))


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
