"""A served turn, put together where the template's render of it does not begin with its prompt.

Three kinds of template do that. Some open a thinking block in the prompt and render an answer that
does not reason without it (Nemotron): rendered with a thought, the turn begins with the prompt, and
the thought is taken out again. Some write what came before otherwise once the answer is there
(gpt-oss drops the thinking of a tool call, Mistral the system message): the turn's own text, found
behind the message before it, is put behind the prompt. And some drop all reasoning (R1-distill,
DeepSeek-V3): what the prompt has not opened is written from the message.
"""

from __future__ import annotations

import re

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import Message
from lora_sft.data.examples.thinking import (
    has_thinking,
    is_thinking_closed,
    without_thinking,
    write_rest_of_turn,
)
from lora_sft.data.labels.history_spans import (
    MARK,
    Answer,
    RenderedText,
    is_only_thinking,
    remove_thinking_marks,
)
from lora_sft.data.labels.text_difference import find_first_difference
from lora_sft.data.templates.rendering import OpenedChat

EXCERPT_CHARACTERS = 40


def splice_turn(
    chat: OpenedChat, index: int, message: Message, prompt: str, text: str, stops: re.Pattern[str]
) -> str:
    """P and the target, where `text`, the render with the answer, does not begin with `prompt`.

    Raises: RowDropped where the turn cannot be told apart from what stands before it, or where it
    has to be written and more belongs to it than content and reasoning (the markup of tool calls
    is the template's alone).
    """
    if not has_thinking(message):
        thoughtless = _render_thoughtless(chat, index, prompt)
        if thoughtless is not None:
            return thoughtless
    answer = _find_answer(chat, index, prompt, text)
    if answer is None:
        raise RowDropped("not_prefix_stable", _describe_difference(prompt, text, index))
    if not answer.unshown:
        return prompt + text[answer.start :]
    if is_thinking_closed(answer.header) and has_thinking(message):
        detail = f"message {index} thinks, and the prompt has closed its thinking block already"
        raise RowDropped("content_lost", detail)
    stop = stops.search(text, answer.start)
    shown = text[answer.start : stop.start() if stop else None]
    is_only_content = not message.tool_calls and _is_all(shown, message)
    if not is_only_content or not is_only_thinking(answer.unshown):
        raise RowDropped("not_prefix_stable", _describe_difference(prompt, text, index))
    target = write_rest_of_turn(message, prompt, answer.header)
    return prompt + target + (stop.group() if stop else "")


def _render_thoughtless(chat: OpenedChat, index: int, prompt: str) -> str | None:
    """The turn rendered with a thought, which is then left out; None where `prompt` opens none."""
    thought = {index: Message("", None, extras={"reasoning_content": MARK})}
    text = chat.render(index + 1, served=False, instead=thought)
    answer = text.removeprefix(prompt)
    begins = text.startswith(prompt) and answer.lstrip().startswith(MARK)
    return prompt + answer.replace(MARK, "", 1) if begins else None


def _find_answer(chat: OpenedChat, index: int, prompt: str, text: str) -> Answer | None:
    """Where `text` shows the answer; None where it cannot be told."""
    shown = RenderedText(chat, index + 1, served=False, text=text)
    before = chat.render(index, served=False)
    if prompt.startswith(before) and text.startswith(before):
        return shown.find_after(len(before), prompt[len(before) :], index)
    return shown.find_answer(index, RenderedText(chat, index, served=True, text=prompt))


def _is_all(shown: str, message: Message) -> bool:
    """Whether a render shows the message's content and nothing else: no markup would be lost."""
    contents = (message.content, without_thinking(message).content)
    return _compact(shown) in {_compact(content or "") for content in contents}


def _compact(text: str) -> str:
    return "".join(remove_thinking_marks(text).split())


def _describe_difference(prompt: str, text: str, index: int) -> str:
    at = find_first_difference(prompt, text)
    served, rendered = (side[at : at + EXCERPT_CHARACTERS] for side in (prompt, text))
    return f"before message {index} the template serves {served!r} but renders {rendered!r}"
