"""Assemble a served turn if the answered text does not begin with the served prompt.

Three kinds of templates need this:

- The prompt opens a thinking block, but an answer without reasoning is rendered without the block
  (Nemotron). Such a turn is rendered with a marker as its reasoning, so that it begins with the
  prompt. The marker is then removed.
- Earlier messages are rendered differently once the answer follows: gpt-oss drops the reasoning of
  a tool call, and Mistral drops the system message. The turn's own text begins after the message
  before it. This text is appended to the served prompt.
- All reasoning is dropped (R1-distill, DeepSeek-V3). The rest of the turn after the served prompt
  is written from the message.
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
    MARKER,
    RenderedText,
    ShownAnswer,
    has_only_thinking_marks,
    remove_thinking_marks,
)
from lora_sft.data.labels.text_difference import find_first_difference
from lora_sft.data.templates.rendering import OpenedChat

EXCERPT_CHARACTERS = 40


def splice_turn(
    chat: OpenedChat, index: int, message: Message, prompt: str, text: str, stops: re.Pattern[str]
) -> str:
    """Return the served prompt and the target of message `index`.

    Args:
        prompt: The served prompt.
        text: The answered text. It does not begin with `prompt`.
        stops: A pattern that finds stop tokens.

    Raises: RowDropped in two cases. The turn's text cannot be separated from the messages before
        it. Or the turn must be written from the message, but has tool calls or other markup that
        only the template can write.
    """
    if not has_thinking(message):
        without_reasoning = _render_without_reasoning(chat, index, prompt)
        if without_reasoning is not None:
            return without_reasoning
    answer = _find_answer(chat, index, prompt, text)
    if answer is None:
        raise RowDropped("not_prefix_stable", _describe_difference(prompt, text, index))
    if not answer.missing_header:
        return prompt + text[answer.start :]
    if is_thinking_closed(answer.header) and has_thinking(message):
        detail = f"message {index} has reasoning, but the prompt already closed its thinking block"
        raise RowDropped("content_lost", detail)
    stop = stops.search(text, answer.start)
    shown = text[answer.start : stop.start() if stop else None]
    is_only_content = not message.tool_calls and _shows_only_content(shown, message)
    if not is_only_content or not has_only_thinking_marks(answer.missing_header):
        raise RowDropped("not_prefix_stable", _describe_difference(prompt, text, index))
    target = write_rest_of_turn(message, prompt, answer.header)
    return prompt + target + (stop.group() if stop else "")


def _render_without_reasoning(chat: OpenedChat, index: int, prompt: str) -> str | None:
    """Render the turn with a marker as its reasoning, and return the text without the marker.

    Returns: None if `prompt` opens no thinking block.
    """
    marker = {index: Message("", None, extras={"reasoning_content": MARKER})}
    text = chat.render(index + 1, served=False, instead=marker)
    answer = text.removeprefix(prompt)
    begins = text.startswith(prompt) and answer.lstrip().startswith(MARKER)
    return prompt + answer.replace(MARKER, "", 1) if begins else None


def _find_answer(chat: OpenedChat, index: int, prompt: str, text: str) -> ShownAnswer | None:
    """Return where `text` shows the answer, or None if it is not found."""
    shown = RenderedText(chat, index + 1, served=False, text=text)
    before = chat.render(index, served=False)
    if prompt.startswith(before) and text.startswith(before):
        return shown.find_answer_after(len(before), prompt[len(before) :], index)
    return shown.find_answer(index, RenderedText(chat, index, served=True, text=prompt))


def _shows_only_content(shown: str, message: Message) -> bool:
    """Return whether a rendered answer shows only the message's content, and no other markup."""
    contents = (message.content, without_thinking(message).content)
    return _compact(shown) in {_compact(content or "") for content in contents}


def _compact(text: str) -> str:
    return "".join(remove_thinking_marks(text).split())


def _describe_difference(prompt: str, text: str, index: int) -> str:
    at = find_first_difference(prompt, text)
    served, rendered = (side[at : at + EXCERPT_CHARACTERS] for side in (prompt, text))
    return f"before message {index} the template serves {served!r} but renders {rendered!r}"
