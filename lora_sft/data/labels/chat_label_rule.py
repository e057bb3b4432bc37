"""Decide which characters of a conversation are learned.

The model learns exactly the text that it must produce when it is served. For each trained
assistant turn, the chat template renders two texts:

- the served prompt: the messages before the turn, with the generation prompt, as a server sends it;
- the answered text: the messages up to and including the turn.

The target is the part of the answered text after the served prompt, up to and including the stop
token. The newline after the stop token is never learned, nor are a user's words. The rule works for
any template: it needs no markers in the template and no list of known templates.

One labelled row holds the whole conversation only if the rendered conversation begins with the
served prompt and the target of each trained turn. Some templates rewrite history: they drop
earlier reasoning, or end earlier turns with another token. Then `data.rewritten_history` chooses
what is learned.

Some templates do not render the text that is served. The text is then assembled here, and its
`built` is `spliced`. There are two cases:

- The answered text does not begin with the served prompt. `spliced_turn` joins the two.
- The turn has no stop token of its own. A server stops at the token that begins the next message,
  so this token is appended to the target.
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
    find_lost_text,
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
    """Facts about the labelled examples: their stop tokens, and causes of warnings.

    Attributes:
        seen_stops: The stop tokens at the end of trained turns.
        saw_thinking: Whether a trained turn has reasoning.
        lost_context: How many examples are rendered without a part of their context.
        first_lost_context: The place of the first of these examples.
        in_place: How many examples learn an earlier turn in another form than the served one.
        left_thinking_open: Whether a conversation leaves `enable_thinking` to the recipe.
    """

    seen_stops: set[str] = field(default_factory=set)
    saw_thinking: bool = False
    lost_context: int = 0
    first_lost_context: str = ""
    in_place: int = 0
    left_thinking_open: bool = False

    def add(self, later: Notes) -> None:
        """Add the notes of later examples to these notes."""
        self.seen_stops |= later.seen_stops
        self.saw_thinking |= later.saw_thinking
        self.lost_context += later.lost_context
        self.in_place += later.in_place
        self.left_thinking_open |= later.left_thinking_open
        self.first_lost_context = self.first_lost_context or later.first_lost_context


@dataclass(frozen=True)
class ServedTurn:
    """The served form of one trained turn.

    Attributes:
        text: The served prompt, the target, and the template's text after the target.
        learned: The target, as a span of `text`.
        stop: The stop token at the end of the target.
        built: How `text` was made, as in `LabelledRow`.
    """

    text: str
    learned: LearnedText
    stop: str
    built: str = "rendered"

    def is_start_of(self, text: str) -> bool:
        """Return whether `text` starts with this turn's served prompt and target."""
        return text.startswith(self.text[: self.learned.end])


class ChatLabelRule:
    """The label rule for conversations, with one recipe's settings."""

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

    def render_chats(self, conversation: Conversation, where: str) -> list[RenderedChat]:
        """Return one text for the conversation, or one per trained turn if history is rewritten.

        Raises:
            RowDropped: If this example cannot be learned.
            DataError: If the recipe forbids something that the example contains.
        """
        conversation = self._renderer.remove_repeated_reasoning(conversation)
        found = self._find_special_token(conversation)
        if found is None:
            return self._render_checked_chats(conversation, where)
        if self._special_tokens_in_content != "escape":
            refuse_special_token(found, where, self._special_tokens_in_content)
        escaped = escape_special_tokens(conversation, self._special)
        chats = self._render_checked_chats(escaped.conversation, where)
        return [replace(chat, built="escaped", placeholders=escaped.placeholders) for chat in chats]

    def _render_checked_chats(self, conversation: Conversation, where: str) -> list[RenderedChat]:
        trained = find_trained_messages(conversation, self._loss_on, where)
        chat = self._renderer.open(conversation)
        whole = chat.render(len(conversation.messages), served=False)
        self._note_causes_of_warnings(conversation, trained, whole, where)
        if self._loss_on == "all":
            return [RenderedChat(where, whole, (LearnedText("text", None, 0, len(whole)),))]
        if not trained:
            raise RowDropped("no_target", "the row has no assistant turn to learn")
        turns = [self._find_served_turn(chat, conversation, index, whole) for index in trained]
        if all(turn.is_start_of(whole) for turn in turns):
            return [RenderedChat(where, whole, tuple(turn.learned for turn in turns))]
        last = turns[-1]
        if all(
            turn.is_start_of(last.text) for turn in turns
        ):  # `whole` lacks only the last stop token
            learned = tuple(turn.learned for turn in turns)
            return [RenderedChat(where, last.text, learned, last.built)]
        if self._rewritten_history == "in_place":
            return [self._render_in_place(chat, conversation, turns, whole, where)]
        return self._render_served_turns(turns, where)

    def _note_causes_of_warnings(
        self, conversation: Conversation, trained: list[int], whole: str, where: str
    ) -> None:
        """Note facts of a valid example that the user may not expect."""
        messages = conversation.messages
        if not self.notes.saw_thinking:
            self.notes.saw_thinking = any(has_thinking(messages[i]) for i in trained)
        context = [each for index, each in enumerate(messages) if index not in trained]
        if _loses_context(context, conversation.tools, whole):
            self.notes.add(Notes(lost_context=1, first_lost_context=where))

    def _render_in_place(
        self,
        chat: OpenedChat,
        conversation: Conversation,
        turns: list[ServedTurn],
        whole: str,
        where: str,
    ) -> RenderedChat:
        """Return one text for the whole conversation.

        Earlier turns are learned as history shows them. A trained turn at the end of the
        conversation is learned as it is served.

        Raises: RowDropped if a turn cannot be found in the text, or if history lost its content.
        """
        last = turns[-1]
        ends = last.learned.message == len(conversation.messages) - 1
        text, built = (last.text, last.built) if ends else (whole, "rendered")
        shared = find_first_difference(text, whole)
        history = RenderedText(chat, chat.num_messages, served=False, text=whole)
        learned = []
        for turn in turns:
            if turn.is_start_of(text):
                learned.append(turn.learned)
                continue
            index = turn.learned.message
            assert index is not None
            served = turn.text[: turn.learned.start]
            prompt = RenderedText(chat, index, served=True, text=served)
            place = find_shown_turn(history, index, prompt, turn.stop)
            if place is None or place[1] > shared:
                detail = f"message {index} cannot be found in the rendered conversation"
                raise RowDropped("not_prefix_stable", detail)
            shown = without_thinking(conversation.messages[index])
            check_content_survives(shown, whole[slice(*place)], index)
            learned.append(LearnedText(TRAINED_ROLE, index, *place))
        self.notes.in_place += 1
        return RenderedChat(where, text, tuple(learned), built)

    def _render_served_turns(self, turns: list[ServedTurn], where: str) -> list[RenderedChat]:
        if self._rewritten_history == "error":
            raise DataError(
                "the chat template renders earlier turns differently from how they are served",
                where,
                "set data.rewritten_history: expand (one row per turn) or last",
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
        """Return the target's stop token: the first known one, else a special token at the end."""
        stop = self._stops.search(text, start)
        return stop or self._special_at_end.search(text.rstrip(), start)

    def _find_next_start(
        self, chat: OpenedChat, conversation: Conversation, index: int, text: str
    ) -> str:
        """Return the special token that begins the next message.

        The next message is a tool result after a tool call, else a user message.

        Raises: RowDropped if the next message does not begin with a special token.
        """
        calls = conversation.messages[index].tool_calls
        probe = Message("tool" if calls else "user", PROBE_QUESTION)
        continued = chat.render(index + 1, served=False, then=[probe])
        end = len(text)
        if not continued.startswith(text):
            # The template rewrites this turn in history, but it keeps the turn's last line.
            ending = text[-EXCERPT_CHARACTERS:].rpartition("\n")[2]
            place = continued.rfind(ending, 0, continued.rfind(PROBE_QUESTION))
            end = place + len(ending) if place >= 0 else len(continued)
        stop = self._special.match(continued, end)
        if stop is None:
            ending = text[-EXCERPT_CHARACTERS:]
            detail = f"message {index} ends in {ending!r}, and no special token follows"
            raise RowDropped("no_stop_token", detail)
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
    """Return whether the text lacks a context message's content or call, or a tool's name."""
    calls = chain.from_iterable(message.tool_calls for message in context)
    return (
        any(
            (each.content or "").strip() not in whole and not has_thinking(each) for each in context
        )
        or any(str(find_call_name(tool)) not in whole for tool in tools)
        or bool(find_lost_text(chain.from_iterable(map(list_call_texts, calls)), whole))
    )


def refuse_special_token(token: str, where: str, policy: str) -> None:
    """Refuse an example whose content holds a special token.

    Raises:
        DataError: If `policy` is `error`.
        RowDropped: If it is anything else.
    """
    if policy == "error":
        raise DataError(
            f'the content holds the special token "{token}"',
            where,
            "remove it from the row, or set data.special_tokens_in_content: drop, escape or allow",
        )
    raise RowDropped("special_tokens", f'the content holds "{token}"')


def find_texts(conversation: Conversation) -> Iterator[str]:
    """Yield every text that the template may render, including keys of nested objects."""
    for message in conversation.messages:
        yield message.role
        yield message.content or ""
        for nested in filter(None, (message.tool_calls, message.extras)):
            yield from _walk_texts(nested)
    yield from _walk_texts(conversation.tools)
    yield from _walk_texts(conversation.template_kwargs)


def _walk_texts(value: Any) -> Iterator[str]:
    return (each for each in walk_values(value) if isinstance(each, str))
