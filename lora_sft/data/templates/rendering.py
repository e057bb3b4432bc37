"""Conversations to text, through the chat template, and what the tokenizer calls special.

Rendering is the template's business alone: nothing is added, trimmed or repaired here, so that
what is trained is what the same template serves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    _alias_reasoning_fields,
    _plain_template_data,
)

from lora_sft.data.drops import RowDropped
from lora_sft.data.examples.conversation import Conversation, Message
from lora_sft.data.examples.thinking import (
    move_thinking_to_field,
    split_thinking_block,
    without_reasoning_fields,
)
from lora_sft.data.templates.template_environment import compile_template

PROBE_QUESTION = "Kwestion"
PROBE_ANSWER = "Ansswer"
PROBE_THOUGHT = "Thougght"
THINKING_SWITCH = "enable_thinking"
CLOCK = "strftime_now"  # the function by which templates read the date
# Defined by an exported template that tells the recipe's day alone, in the place of the clock.
STOPPED_CLOCK = f"{{%- macro {CLOCK}(format) -%}}"


# Templates are programs: these are what a conversation they did not expect makes them raise.
TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TemplateRefusal(RowDropped):
    """The chat template raised on a conversation; the detail is the template's own message."""

    def __init__(self, detail: str) -> None:
        super().__init__("template_refused", detail)


class ChatRenderer:
    """One tokenizer's template with the recipe's template kwargs, and a clock that stands still.

    The text is that of `apply_chat_template`, rendered by its own compiled template (transformers
    5.23 `render_jinja_template`; a test holds the two equal). Going there directly lets a
    conversation be prepared once for all its prefixes, and lets `strftime_now` be set, which some
    templates write into every prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any],
        today: date | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs)
        self.today = today or date.today()

    @property
    def has_template(self) -> bool:
        """Whether there is a template at all; base models often have none."""
        return bool(self._tokenizer.chat_template)

    @property
    def teaches_empty_thoughts(self) -> bool:
        """Whether the template knows `enable_thinking` and the recipe leaves it open."""
        known = any(THINKING_SWITCH in text for text in list_templates(self._tokenizer).values())
        return known and THINKING_SWITCH not in self._template_kwargs

    def open(self, conversation: Conversation) -> OpenedChat:
        """Prepare a conversation for rendering its prefixes.

        Raises: TemplateRefusal where there is no template for a row with tools.
        """
        return self._open(conversation, self._dialect)

    def keep_one_thought(self, conversation: Conversation) -> Conversation:
        """The conversation with what an answer thinks said once."""
        messages = tuple(map(self._dialect.keep_one_thought, conversation.messages))
        return replace(conversation, messages=messages)

    def _open(self, conversation: Conversation, dialect: Dialect) -> OpenedChat:
        tools = [dict(tool) for tool in conversation.tools] or None
        own = {**conversation.template_kwargs, "tools": tools}
        return OpenedChat(
            compile_template(self._get_template(tools)),
            dialect.write_messages(conversation.messages),
            {**self._shared_variables, **_plain_template_data(own), CLOCK: self.today.strftime},
            dialect,
        )

    @cached_property
    def _dialect(self) -> Dialect:
        """What the template reads, found by rendering probes: plain texts unless only parts are
        rendered; thinking inside the content unless only its own field is."""
        answer = Message("assistant", PROBE_ANSWER)
        texts, parts = Dialect(), Dialect(as_parts=True)
        reads_parts_only = PROBE_ANSWER not in self._try(answer, texts) and (
            PROBE_ANSWER in self._try(answer, parts)
        )
        dialect = parts if reads_parts_only else texts
        in_field = replace(answer, extras={"reasoning_content": PROBE_THOUGHT})
        inline = replace(answer, content=f"<think>\n{PROBE_THOUGHT}\n</think>\n\n{PROBE_ANSWER}")
        by_field, by_content = self._try(in_field, dialect), self._try(inline, dialect)
        reads_field, reads_block = PROBE_THOUGHT in by_field, PROBE_THOUGHT in by_content
        return replace(
            dialect,
            splits_thinking=reads_field and by_field != by_content,
            reads_block_only=reads_block and not reads_field,
        )

    def _try(self, answer: Message, dialect: Dialect) -> str:
        """A question and the answer as text, or nothing where the template refuses them."""
        probe = Conversation((Message("user", PROBE_QUESTION), answer))
        try:
            return self._open(probe, dialect).render(2, served=False)
        except TemplateRefusal:
            return ""

    def _get_template(self, tools: list[dict[str, Any]] | None) -> str:
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several named templates, and none is the default
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _shared_variables(self) -> dict[str, Any]:
        """What every conversation's template is given: special tokens, and the recipe's kwargs.

        `documents` is there even where nobody gives any, as transformers renders it.
        """
        special = self._tokenizer.special_tokens_map
        shared = {"documents": None, **special, **self._template_kwargs}
        return dict(_plain_template_data(shared))

    def find_end_of_turn(self, special: re.Pattern[str], known: re.Pattern[str]) -> str | None:
        """The special token that the template itself ends an answer with, unless it is `known`.

        What follows an answer whether or not the conversation goes on ends the turn, and its last
        special token is the stop: those before it are separators. One that text follows opens the
        next turn. Where nothing is common, the first special token after a final answer is.
        """
        final, followed = self._render_after_answer(2), self._render_after_answer(3)
        pairs = zip(final, followed, strict=False)
        common = "".join(left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        ends_turn = [
            found.group()
            for found in special.finditer(common)
            if not _opens_text(final[found.end() :], special)
        ]
        if ends_turn:
            return None if known.search(common) else ends_turn[-1]
        first = special.search(final)
        return first.group() if first and not known.search(final) else None

    def _render_after_answer(self, num_messages: int) -> str:
        probe = Conversation(
            (
                Message("user", PROBE_QUESTION),
                Message("assistant", PROBE_ANSWER),
                Message("user", PROBE_QUESTION),
            )
        )
        try:
            text = self.open(probe).render(num_messages, served=False)
        except TemplateRefusal:
            return ""
        return text.rpartition(PROBE_ANSWER)[2] if PROBE_ANSWER in text else ""


def _opens_text(after: str, special: re.Pattern[str]) -> bool:
    """Whether what comes after a special token, up to the next one, is more than line breaks."""
    following = special.search(after)
    return bool(after[: following.start() if following else None].strip())


class OpenedChat:
    """A conversation ready to be rendered up to any of its messages."""

    def __init__(
        self,
        template: Any,
        messages: list[dict[str, Any]],
        variables: Mapping[str, Any],
        dialect: Dialect,
    ) -> None:
        self._template = template
        self._messages = messages
        self._variables = variables
        self._dialect = dialect

    @property
    def num_messages(self) -> int:
        """How many messages the conversation has."""
        return len(self._messages)

    def has_calls(self, index: int) -> bool:
        """Whether a message calls tools."""
        return bool(self._messages[index].get("tool_calls"))

    def render(
        self,
        num_messages: int,
        *,
        served: bool,
        then: Sequence[Message] = (),
        instead: Mapping[int, Message] = MappingProxyType({}),
    ) -> str:
        """The first `num_messages` and those of `then`; `served` adds what opens the answer.

        What the messages of `instead` hold takes the place of the same fields.

        Raises: TemplateRefusal.
        """
        messages = self._messages[:num_messages]
        if then:
            messages += self._dialect.write_messages(then)
        for index, other in instead.items():
            (fields,) = self._dialect.write_messages([other])
            messages[index] = {**messages[index], **fields, "role": messages[index]["role"]}
        try:
            rendered = self._template.render(
                messages=messages, add_generation_prompt=served, **self._variables
            )
        except TEMPLATE_FAULTS as error:
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error
        return str(rendered)


@dataclass(frozen=True)
class Dialect:
    """How a template wants to be given messages.

    `as_parts`: content as a list of typed parts (templates of models that also see images).
    `splits_thinking`: reasoning in its own field, not inside the content.
    `reads_block_only`: reasoning inside the content, for no field of it is shown.
    """

    as_parts: bool = False
    splits_thinking: bool = False
    reads_block_only: bool = False

    def write_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template reads them."""
        if self.splits_thinking:
            messages = [move_thinking_to_field(message) for message in messages]
        views = [message.as_template_input() for message in messages]
        if self.as_parts:
            for view in views:
                if isinstance(view.get("content"), str):
                    view["content"] = [{"type": "text", "text": view["content"]}]
        return list(_alias_reasoning_fields(_plain_template_data(views)))

    def keep_one_thought(self, message: Message) -> Message:
        """The message with a thought that stands in its content and in a field left where the
        template looks for it: some print both, and some only one."""
        block = split_thinking_block(message) if message.reasoning.strip() else None
        if block is None:
            return message
        if self.reads_block_only and block[0].strip():
            return without_reasoning_fields(message)
        return move_thinking_to_field(message)


def list_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tokenizer's templates by name; one alone is the `default`, and there may be none."""
    template = tokenizer.chat_template or {}
    return {"default": template} if isinstance(template, str) else dict(template)


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether what any of the tokenizer's templates renders depends on the day."""
    templates = list_templates(tokenizer).values()
    return any(CLOCK in text and STOPPED_CLOCK not in text for text in templates)


def hash_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template's fingerprint; empty where there is no template."""
    template = tokenizer.chat_template
    if not template:
        return ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_token_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens, the longest first; with no tokens it finds none."""
    longest_first = sorted({name for name in names if name}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def find_special_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer turns into control tokens wherever they stand."""
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]
