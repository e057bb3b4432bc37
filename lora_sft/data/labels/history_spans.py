"""Where a text that the template rendered shows a message of the conversation.

A message is found by rendering the conversation once more with a mark in place of its content: what
differs between the two texts is the content. No template has to be known for that, and no other
message is taken for it, however alike they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.data.examples.conversation import Message
from lora_sft.data.examples.thinking import THINKING_MARKS
from lora_sft.data.labels.text_difference import find_first_difference
from lora_sft.data.templates.rendering import OpenedChat

MARK = "\U0010fffd"  # a private character beyond those that stand for special tokens


@dataclass(frozen=True)
class Answer:
    """Where a render shows an answer, without its header; `header` is what the prompt ends in, and
    `unshown` that part of it which the render lacks."""

    start: int
    header: str
    unshown: str


class RenderedText:
    """The text of a conversation's first messages, and where it shows each one's content."""

    def __init__(self, chat: OpenedChat, num_messages: int, *, served: bool, text: str) -> None:
        self.chat = chat
        self.num_messages = num_messages
        self.text = text
        self._served = served
        self._places: dict[int, tuple[int, int] | None] = {}

    def find_content(self, index: int) -> tuple[int, int] | None:
        """Where a message's content begins and ends; None where that cannot be told."""
        if index not in self._places:
            self._places[index] = self._look_for_content(index)
        return self._places[index]

    def find_answer(self, index: int, prompt: RenderedText) -> Answer | None:
        """Where the answer to `prompt` is shown; None where that cannot be told."""
        before, asked = self._find_end(index - 1), prompt._find_end(index - 1)
        if before is None or asked is None:
            return None
        return self.find_after(before, prompt.text[asked:], index)

    def find_after(self, start: int, header: str, index: int) -> Answer:
        """Where answer `index` is shown: what comes before it ends at `start`, and the prompt then
        has `header`."""
        content = self.find_content(index)
        shown = self.text[start : content[0] if content else None]
        length = find_first_difference(header, shown)
        return Answer(start + length, header, header[length:])

    def find_limit(self, index: int) -> int | None:
        """Where the content after message `index` begins, or the text ends."""
        if index + 1 == self.num_messages:
            return len(self.text)
        following = self.find_content(index + 1)
        return None if following is None else following[0]

    def _find_end(self, index: int) -> int | None:
        """Where a message's content ends; before the first message that is the text's start."""
        if index < 0:
            return 0
        place = self.find_content(index)
        return None if place is None else place[1]

    def _look_for_content(self, index: int) -> tuple[int, int] | None:
        mark = {index: Message("", MARK)}
        marked = self.chat.render(self.num_messages, served=self._served, instead=mark)
        before, found, after = marked.partition(MARK)
        end = len(self.text) - len(after)
        if not found or end < len(before):
            return None
        is_same = self.text.startswith(before) and self.text.endswith(after)
        return (len(before), end) if is_same else None


def find_shown_turn(
    whole: RenderedText, index: int, prompt: RenderedText, stop: str
) -> tuple[int, int] | None:
    """The part of `whole` that shows answer `index`, without its header; None where it cannot be
    told.

    It begins where the history has what the served `prompt` ends in (a thinking block that only the
    prompt opens left out), and ends with the turn's own `stop`; without it where the history ends
    the turn otherwise, so that no wrong end is learned.
    """
    content, answer = whole.find_content(index), whole.find_answer(index, prompt)
    if content is None or answer is None:
        return None
    if not is_only_thinking(answer.unshown):
        return None
    limit = whole.find_limit(index)
    place = whole.text.find(stop, content[1], limit) if limit is not None else -1
    if place < 0 and (limit is None or whole.chat.has_calls(index)):
        return None
    return answer.start, place + len(stop) if place >= 0 else content[1]


def is_only_thinking(text: str) -> bool:
    """Whether a text is nothing but the marks around reasoning, and space."""
    return not remove_thinking_marks(text).strip()


def remove_thinking_marks(text: str) -> str:
    """The text without the marks that stand around reasoning."""
    for marks in THINKING_MARKS.items():
        for mark in marks:
            text = text.replace(mark, "")
    return text
