"""Find where a rendered text shows a message of the conversation.

The conversation is rendered a second time with a marker in place of the message's content. The two
texts differ only at the content, so the difference gives its position. This works for any template,
and two messages with equal contents are never confused.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.data.examples.conversation import Message
from lora_sft.data.examples.thinking import THINKING_MARKS
from lora_sft.data.labels.text_difference import find_first_difference
from lora_sft.data.templates.rendering import OpenedChat

MARKER = "\U0010fffd"  # a private-use character that `escaping` does not use as a placeholder


@dataclass(frozen=True)
class ShownAnswer:
    """The place at which a rendered text shows an answer.

    Attributes:
        start: Where the answer begins, after its header.
        header: The end of the served prompt, after the last message.
        missing_header: The end part of `header` that the rendered text lacks; often empty.
    """

    start: int
    header: str
    missing_header: str


class RenderedText:
    """The text of a conversation's first messages, which can find each message's content."""

    def __init__(self, chat: OpenedChat, num_messages: int, *, served: bool, text: str) -> None:
        self.chat = chat
        self.num_messages = num_messages
        self.text = text
        self._served = served
        self._places: dict[int, tuple[int, int] | None] = {}

    def find_content(self, index: int) -> tuple[int, int] | None:
        """Return the start and the end of a message's content, or None if it is not found."""
        if index not in self._places:
            self._places[index] = self._look_for_content(index)
        return self._places[index]

    def find_answer(self, index: int, prompt: RenderedText) -> ShownAnswer | None:
        """Return where this text shows message `index`, or None if it is not found.

        Args:
            prompt: The served prompt of message `index`.
        """
        end_here, end_in_prompt = self._find_end(index - 1), prompt._find_end(index - 1)
        if end_here is None or end_in_prompt is None:
            return None
        return self.find_answer_after(end_here, prompt.text[end_in_prompt:], index)

    def find_answer_after(self, start: int, header: str, index: int) -> ShownAnswer:
        """Return where this text shows message `index`.

        Args:
            start: Where the messages before the answer end in this text.
            header: The text of the served prompt after these messages.
        """
        content = self.find_content(index)
        shown = self.text[start : content[0] if content else None]
        length = find_first_difference(header, shown)
        return ShownAnswer(start + length, header, header[length:])

    def find_next_content(self, index: int) -> int | None:
        """Return where the content of the message after `index` begins, or None if it is not found.

        After the last message this is the end of the text.
        """
        if index + 1 == self.num_messages:
            return len(self.text)
        following = self.find_content(index + 1)
        return None if following is None else following[0]

    def _find_end(self, index: int) -> int | None:
        """Return where a message's content ends; 0 for the index before the first message."""
        if index < 0:
            return 0
        place = self.find_content(index)
        return None if place is None else place[1]

    def _look_for_content(self, index: int) -> tuple[int, int] | None:
        marker = {index: Message("", MARKER)}
        marked = self.chat.render(self.num_messages, served=self._served, instead=marker)
        before, found, after = marked.partition(MARKER)
        end = len(self.text) - len(after)
        if not found or end < len(before):
            return None
        is_same = self.text.startswith(before) and self.text.endswith(after)
        return (len(before), end) if is_same else None


def find_shown_turn(
    whole: RenderedText, index: int, prompt: RenderedText, stop: str
) -> tuple[int, int] | None:
    """Return the start and the end of answer `index` in `whole`, or None if it is not found.

    The answer begins after the header with which the served `prompt` ends. History may lack a
    thinking block that the prompt opens. The answer ends with the turn's `stop`. If history ends
    the turn with another token, the answer ends with its content: a wrong stop token must not be
    learned.
    """
    content, answer = whole.find_content(index), whole.find_answer(index, prompt)
    if content is None or answer is None:
        return None
    if not has_only_thinking_marks(answer.missing_header):
        return None
    limit = whole.find_next_content(index)
    place = whole.text.find(stop, content[1], limit) if limit is not None else -1
    if place < 0 and (limit is None or whole.chat.has_calls(index)):
        return None
    return answer.start, place + len(stop) if place >= 0 else content[1]


def has_only_thinking_marks(text: str) -> bool:
    """Return whether a text contains nothing but thinking marks and white space."""
    return not remove_thinking_marks(text).strip()


def remove_thinking_marks(text: str) -> str:
    """Return the text without its thinking marks."""
    for marks in THINKING_MARKS.items():
        for mark in marks:
            text = text.replace(mark, "")
    return text
