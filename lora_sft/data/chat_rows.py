"""The label rule for conversations, on text: learned is what the model must produce when served.

For a trained assistant turn i, P is the template's text of the messages before it with the
generation prompt (what a server sends), and S the text of the messages up to and with it. The
target is S after P, up to and including its stop token: never the newline after it, never a
user's words. No template needs markers for this, and none is known by name.

One row holds the whole conversation only where the conversation's own render begins with P and
target of every trained turn. Templates that rewrite history (drop earlier thinking, end earlier
turns otherwise) fail that; `rewritten_history` says what happens then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_sft.data.conversation import Conversation, Message
from lora_sft.data.drops import RowDropped
from lora_sft.data.messages import find_call_name
from lora_sft.data.rendering import ChatRenderer
from lora_sft.errors import DataError

TRAINED_ROLE = "assistant"
THINK_MARKS = re.compile("</?think>")
EXCERPT_CHARACTERS = 80


@dataclass(frozen=True)
class LearnedText:
    """One learned span in character positions of its row's text."""

    role: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True)
class RenderedRow:
    """A text to be tokenised once, and the parts of it that are learned."""

    where: str
    text: str
    learned: tuple[LearnedText, ...]


@dataclass(frozen=True)
class ServedTurn:
    """A trained turn as served: S, and where in it the target begins and ends."""

    text: str
    learned: LearnedText

    def begins(self, text: str) -> bool:
        """Whether `text` starts with this turn's prompt and target, character by character."""
        return text.startswith(self.text[: self.learned.end])


class ChatLabelRule:
    """Turns conversations into texts with learned spans, by one recipe's settings."""

    def __init__(
        self,
        renderer: ChatRenderer,
        stops: re.Pattern[str],
        special: re.Pattern[str],
        *,
        loss_on: str,
        rewritten_history: str,
        special_tokens_in_content: str,
    ) -> None:
        self._renderer = renderer
        self._stops = stops
        self._special = special
        self._special_at_end = re.compile(f"(?:{special.pattern})\\Z")
        self._loss_on = loss_on
        self._rewritten_history = rewritten_history
        self._special_tokens_in_content = special_tokens_in_content
        self.seen_stops: set[str] = set()

    def write_rows(self, conversation: Conversation, where: str) -> list[RenderedRow]:
        """One row for the conversation, or one a trained turn where history is rewritten.

        Raises: RowDropped for this row alone; DataError where the recipe forbids going on.
        """
        self._check_special_tokens(conversation, where)
        trained = find_trained_messages(conversation, self._loss_on, where)
        whole = self._renderer.render(conversation, len(conversation.messages), served=False)
        if self._loss_on == "all":
            return [RenderedRow(where, whole, (LearnedText("text", None, 0, len(whole)),))]
        if not trained:
            raise RowDropped("no_target", "no assistant turn is to be learned")
        turns = [self._find_served_turn(conversation, index, whole) for index in trained]
        if all(turn.begins(whole) for turn in turns):
            return [RenderedRow(where, whole, tuple(turn.learned for turn in turns))]
        return self._write_rewritten(turns, where)

    def _write_rewritten(self, turns: list[ServedTurn], where: str) -> list[RenderedRow]:
        if self._rewritten_history == "error":
            raise DataError(
                "the chat template renders earlier turns differently from how they are served",
                where,
                "set data.rewritten_history: expand (one row a turn) or last",
            )
        kept = turns[-1:] if self._rewritten_history == "last" else turns
        return [RenderedRow(where, turn.text, (turn.learned,)) for turn in kept]

    def _find_served_turn(self, conversation: Conversation, index: int, whole: str) -> ServedTurn:
        prompt = self._renderer.render(conversation, index, served=True)
        is_last = index + 1 == len(conversation.messages)
        text = whole if is_last else self._renderer.render(conversation, index + 1, served=False)
        if not text.startswith(prompt):
            raise RowDropped("not_prefix_stable", _describe_difference(prompt, text, index))
        end = self._find_stop_end(text, len(prompt), index)
        check_content_survives(conversation.messages[index], text[len(prompt) : end], index)
        return ServedTurn(text, LearnedText(TRAINED_ROLE, index, len(prompt), end))

    def _find_stop_end(self, text: str, start: int, index: int) -> int:
        """Where the target's stop token ends: the first known stop, else a final special token."""
        stop = self._stops.search(text, start)
        if stop is None:
            stop = self._special_at_end.search(text.rstrip(), start)
        if stop is None:
            ending = text[start:][-EXCERPT_CHARACTERS:]
            raise RowDropped("no_stop_token", f"message {index} ends in {ending!r}")
        self.seen_stops.add(stop.group())
        return stop.end()

    def _check_special_tokens(self, conversation: Conversation, where: str) -> None:
        if self._special_tokens_in_content == "allow":
            return
        texts = find_texts(conversation)
        found = next((match for text in texts if (match := self._special.search(text))), None)
        if found is not None:
            refuse_special_token(found.group(), where, self._special_tokens_in_content)


def refuse_special_token(token: str, where: str, policy: str) -> None:
    """Drop the row, or stop where the recipe says `error`.

    Raises: RowDropped or DataError, always.
    """
    if policy == "error":
        raise DataError(
            f'the content holds the special token "{token}"',
            where,
            "clean the row, or set data.special_tokens_in_content: drop or allow",
        )
    raise RowDropped("special_tokens", f'the content holds "{token}"')


def find_trained_messages(conversation: Conversation, loss_on: str, where: str) -> list[int]:
    """The indices of the assistant turns to learn; an opening one is context, as none asked it."""
    if loss_on == "all":
        _check_no_untrained(conversation, where)
        return []
    start = conversation.completion_start
    if loss_on == "completion" and start is None:
        raise DataError(
            "loss_on: completion, but the row is a conversation without a completion",
            where,
            "set data.loss_on: assistant, last_assistant or auto",
        )
    begin = start or 0 if loss_on in ("auto", "completion") else 0
    answers = [
        index
        for index, message in enumerate(conversation.messages)
        if message.role == TRAINED_ROLE and index >= max(begin, 1)
    ]
    chosen = answers[-1:] if loss_on == "last_assistant" else answers
    return [index for index in chosen if conversation.messages[index].train is not False]


def _check_no_untrained(conversation: Conversation, where: str) -> None:
    if any(message.train is False for message in conversation.messages):
        raise DataError(
            "loss_on: all learns every token, and a message of the row says train: false",
            where,
            "set data.loss_on: assistant, or take train and weight out of the messages",
        )


def check_content_survives(message: Message, target: str, index: int) -> None:
    """What the turn holds must be in what is learned: templates drop things without a word.

    Content may be split at its thinking marks, which templates lay out anew.

    Raises: RowDropped.
    """
    lost = [text for text in _find_required(message, target) if text.strip() not in target]
    if lost:
        excerpt = lost[0].strip()[:EXCERPT_CHARACTERS]
        raise RowDropped("content_lost", f"message {index} is rendered without {excerpt!r}")


def _find_required(message: Message, target: str) -> Iterator[str]:
    content = message.content or ""
    if content.strip() in target:
        yield content
    else:
        yield from THINK_MARKS.split(content)
    yield message.reasoning
    yield from (str(find_call_name(call)) for call in message.tool_calls)


def find_texts(conversation: Conversation) -> Iterator[str]:
    """Every text of the row that reaches the template, keys of nested objects included."""
    for message in conversation.messages:
        yield message.role
        yield message.content or ""
        yield from _walk_texts(message.tool_calls)
        yield from _walk_texts(message.extras)
    yield from _walk_texts(conversation.tools)


def _walk_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _walk_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk_texts(item)


def _describe_difference(prompt: str, text: str, index: int) -> str:
    pairs = enumerate(zip(prompt, text, strict=False))
    at = next((i for i, (left, right) in pairs if left != right), min(len(prompt), len(text)))
    served, rendered = (side[at : at + EXCERPT_CHARACTERS // 2] for side in (prompt, text))
    return f"before message {index} the template serves {served!r} but renders {rendered!r}"
