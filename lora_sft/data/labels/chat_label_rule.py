"""The label rule for conversations, on text: learned is what the model must produce when served.

For a trained assistant turn i, P is the template's text of the messages before it with the
generation prompt (what a server sends), and S the text of the messages up to and with it. The
target is S after P, up to and including its stop token: never the newline after it, never a
user's words. No template needs markers for this, and none is known by name.

One labelled row holds the whole conversation only where the conversation's own render begins with
P and target of every trained turn. Templates that rewrite history (drop earlier thinking, end
earlier turns otherwise) fail that; `rewritten_history` says what happens then.

Two kinds of template do not render what is served, and the text is then put together (`spliced`):
where the prompt opens a thinking block that the render drops, the target is written from the
message; where no turn has an end of its own, the token that begins the matching next turn is the
stop (a server stops at it), and it is appended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import TRAINED_ROLE, Conversation, Message
from lora_sft.data.examples.messages import find_call_name
from lora_sft.data.examples.thinking import has_thinking, without_thinking
from lora_sft.data.labels.content_survival import (
    EXCERPT_CHARACTERS,
    check_content_survives,
    find_lost,
    list_call_texts,
    walk_values,
)
from lora_sft.data.labels.escaping import escape_special_tokens
from lora_sft.data.labels.history_spans import RenderedText, find_shown_turn
from lora_sft.data.labels.rendered_chat import LearnedText, RenderedChat
from lora_sft.data.labels.spliced_turn import splice_turn
from lora_sft.data.labels.text_difference import find_first_difference
from lora_sft.data.labels.trained_messages import find_trained_messages
from lora_sft.data.templates.rendering import PROBE_QUESTION, ChatRenderer, OpenedChat
from lora_sft.errors import DataError


@dataclass
class Notes:
    """What a person should be told of examples that are right as they are, and their stops.

    `lost_context` counts examples whose context is not rendered whole; `first_lost_context` is
    where. `in_place` counts examples that learn an earlier turn otherwise than it is served.
    """

    seen_stops: set[str] = field(default_factory=set)
    saw_thinking: bool = False
    lost_context: int = 0
    first_lost_context: str = ""
    in_place: int = 0
    left_thinking_open: bool = False

    def add(self, later: Notes) -> None:
        """Take in the notes on examples that come after these."""
        self.seen_stops |= later.seen_stops
        self.saw_thinking |= later.saw_thinking
        self.lost_context += later.lost_context
        self.in_place += later.in_place
        self.left_thinking_open |= later.left_thinking_open
        self.first_lost_context = self.first_lost_context or later.first_lost_context


@dataclass(frozen=True)
class ServedTurn:
    """A trained turn as served: P and target (and what the template puts after it), and where in
    it the target begins and ends; `stop` is what it ends in."""

    text: str
    learned: LearnedText
    stop: str
    built: str = "rendered"

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
        self.notes = Notes()

    def write_chats(self, conversation: Conversation, where: str) -> list[RenderedChat]:
        """One text for the conversation, or one a trained turn where history is rewritten.

        Raises: RowDropped for this example alone; DataError where the recipe forbids going on.
        """
        conversation = self._renderer.remove_repeated_reasoning(conversation)
        found = self._find_special_token(conversation)
        if found is None:
            return self._write_clean_chats(conversation, where)
        if self._special_tokens_in_content != "escape":
            refuse_special_token(found, where, self._special_tokens_in_content)
        escaped = escape_special_tokens(conversation, self._special)
        chats = self._write_clean_chats(escaped.conversation, where)
        return [replace(chat, built="escaped", stand_ins=escaped.stand_ins) for chat in chats]

    def _write_clean_chats(self, conversation: Conversation, where: str) -> list[RenderedChat]:
        trained = find_trained_messages(conversation, self._loss_on, where)
        chat = self._renderer.open(conversation)
        whole = chat.render(len(conversation.messages), served=False)
        self._look_around(conversation, trained, whole, where)
        if self._loss_on == "all":
            return [RenderedChat(where, whole, (LearnedText("text", None, 0, len(whole)),))]
        if not trained:
            raise RowDropped("no_target", "no assistant turn is to be learned")
        turns = [self._find_served_turn(chat, conversation, index, whole) for index in trained]
        if all(turn.begins(whole) for turn in turns):
            return [RenderedChat(where, whole, tuple(turn.learned for turn in turns))]
        last = turns[-1]
        if all(turn.begins(last.text) for turn in turns):  # all but an appended stop is there
            learned = tuple(turn.learned for turn in turns)
            return [RenderedChat(where, last.text, learned, last.built)]
        if self._rewritten_history == "in_place":
            return [self._write_in_place(chat, conversation, turns, whole, where)]
        return self._write_rewritten(turns, where)

    def _look_around(
        self, conversation: Conversation, trained: list[int], whole: str, where: str
    ) -> None:
        """Note what a person should be told of, though the example is right as it is."""
        messages = conversation.messages
        if not self.notes.saw_thinking:
            self.notes.saw_thinking = any(has_thinking(messages[i]) for i in trained)
        context = [each for index, each in enumerate(messages) if index not in trained]
        if _loses_context(context, conversation.tools, whole):
            self.notes.add(Notes(lost_context=1, first_lost_context=where))

    def _write_in_place(
        self,
        chat: OpenedChat,
        conversation: Conversation,
        turns: list[ServedTurn],
        whole: str,
        where: str,
    ) -> RenderedChat:
        """One text of the whole conversation, its earlier turns learned as history shows them, and
        a turn that ends it as it is served.

        Raises: RowDropped where a turn cannot be found there, or history lost what it holds.
        """
        last = turns[-1]
        ends = last.learned.message == len(conversation.messages) - 1
        text, built = (last.text, last.built) if ends else (whole, "rendered")
        shared = find_first_difference(text, whole)
        history = RenderedText(chat, chat.num_messages, served=False, text=whole)
        learned = []
        for turn in turns:
            if turn.begins(text):
                learned.append(turn.learned)
                continue
            index = turn.learned.message
            assert index is not None
            served = turn.text[: turn.learned.start]
            prompt = RenderedText(chat, index, served=True, text=served)
            place = find_shown_turn(history, index, prompt, turn.stop)
            if place is None or place[1] > shared:
                detail = f"history shows message {index} otherwise than can be told apart"
                raise RowDropped("not_prefix_stable", detail)
            shown = without_thinking(conversation.messages[index])
            check_content_survives(shown, whole[slice(*place)], index)
            learned.append(LearnedText(TRAINED_ROLE, index, *place))
        self.notes.in_place += 1
        return RenderedChat(where, text, tuple(learned), built)

    def _write_rewritten(self, turns: list[ServedTurn], where: str) -> list[RenderedChat]:
        if self._rewritten_history == "error":
            raise DataError(
                "the chat template renders earlier turns differently from how they are served",
                where,
                "set data.rewritten_history: expand (one row a turn) or last",
            )
        kept = turns[-1:] if self._rewritten_history == "last" else turns
        return [RenderedChat(where, turn.text, (turn.learned,), turn.built) for turn in kept]

    def _find_served_turn(
        self, chat: OpenedChat, conversation: Conversation, index: int, whole: str
    ) -> ServedTurn:
        prompt = chat.render(index, served=True)
        is_last = index + 1 == len(conversation.messages)
        text = whole if is_last else chat.render(index + 1, served=False)
        message, built = conversation.messages[index], "rendered"
        if not text.startswith(prompt):
            text = splice_turn(chat, index, message, prompt, text, self._stops)
            built = "spliced"
        found = self._find_stop(text, len(prompt))
        if found is None:
            stop = self._find_next_start(chat, conversation, index, text)
            text, built, end = text + stop, "spliced", len(text) + len(stop)
        else:
            stop, end = found.group(), found.end()
        self.notes.seen_stops.add(stop)
        check_content_survives(message, text[len(prompt) : end], index)
        learned = LearnedText(TRAINED_ROLE, index, len(prompt), end)
        return ServedTurn(text, learned, stop, built)

    def _find_stop(self, text: str, start: int) -> re.Match[str] | None:
        """The target's stop token: the first known stop, else a final special token."""
        stop = self._stops.search(text, start)
        return stop or self._special_at_end.search(text.rstrip(), start)

    def _find_next_start(
        self, chat: OpenedChat, conversation: Conversation, index: int, text: str
    ) -> str:
        """The special token that begins what comes next: a tool's result after a call, else a
        user's turn.

        Raises: RowDropped where what comes next begins with none.
        """
        calls = conversation.messages[index].tool_calls
        probe = Message("tool" if calls else "user", PROBE_QUESTION)
        continued = chat.render(index + 1, served=False, then=[probe])
        end = len(text)
        if not continued.startswith(text):  # the history is rewritten: the turn's last line is not
            ending = text[-EXCERPT_CHARACTERS:].rpartition("\n")[2]
            place = continued.rfind(ending, 0, continued.rfind(PROBE_QUESTION))
            end = place + len(ending) if place >= 0 else len(continued)
        stop = self._special.match(continued, end)
        if stop is None:
            ending = text[-EXCERPT_CHARACTERS:]
            raise RowDropped("no_stop_token", f"message {index} ends in {ending!r}")
        return stop.group()

    def _find_special_token(self, conversation: Conversation) -> str | None:
        if self._special_tokens_in_content == "allow":
            return None
        texts = find_texts(conversation)
        found = next((match for text in texts if (match := self._special.search(text))), None)
        return found.group() if found is not None else None


def _loses_context(
    context: Sequence[Message], tools: Sequence[Mapping[str, Any]], whole: str
) -> bool:
    """Whether the render lacks what a message that is not learned says or calls, or a tool."""
    calls = chain.from_iterable(message.tool_calls for message in context)
    return (
        any(
            (each.content or "").strip() not in whole and not has_thinking(each) for each in context
        )
        or any(str(find_call_name(tool)) not in whole for tool in tools)
        or bool(find_lost(chain.from_iterable(map(list_call_texts, calls)), whole))
    )


def refuse_special_token(token: str, where: str, policy: str) -> None:
    """Drop the example, or stop where the recipe says `error`.

    Raises: RowDropped or DataError, always.
    """
    if policy == "error":
        raise DataError(
            f'the content holds the special token "{token}"',
            where,
            "clean the row, or set data.special_tokens_in_content: drop or allow",
        )
    raise RowDropped("special_tokens", f'the content holds "{token}"')


def find_texts(conversation: Conversation) -> Iterator[str]:
    """Every text of the example that reaches the template, keys of nested objects included."""
    for message in conversation.messages:
        yield message.role
        yield message.content or ""
        for nested in filter(None, (message.tool_calls, message.extras)):
            yield from _walk_texts(nested)
    yield from _walk_texts(conversation.tools)
    yield from _walk_texts(conversation.template_kwargs)


def _walk_texts(value: Any) -> Iterator[str]:
    return (each for each in walk_values(value) if isinstance(each, str))
