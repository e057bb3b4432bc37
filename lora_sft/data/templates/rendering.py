"""Render conversations to text with the chat template, and find the tokenizer's special tokens.

Only the template decides the text. Nothing is added, trimmed or repaired here, so that the model is
trained on the text that the same template produces in a server.
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
from lora_sft.data.templates.render_budget import TemplateOverBudget
from lora_sft.data.templates.template_environment import compile_template

# Misspelled on purpose, so that no template contains these words itself.
PROBE_QUESTION = "Kwestion"
PROBE_ANSWER = "Ansswer"
PROBE_THOUGHT = "Thougght"
THINKING_SWITCH = "enable_thinking"
DATE_FUNCTION = "strftime_now"  # templates call this function to read the date
# An exported template defines this macro in place of the function if the recipe fixes the date.
FIXED_DATE_MACRO = f"{{%- macro {DATE_FUNCTION}(format) -%}}"


# Templates are programs. They raise these for a conversation that they do not expect.
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
    """The chat template failed on a conversation. The detail is the template's own message."""

    def __init__(self, detail: str) -> None:
        super().__init__("template_refused", detail)


class ChatRenderer:
    """Renders conversations with one tokenizer's template, the recipe's arguments and a fixed date.

    The text is the same as from `apply_chat_template` (transformers 5.23 `render_jinja_template`; a
    test compares the two). The compiled template is called directly, for two reasons. It lets a
    conversation be prepared once for all its prefixes. And it lets the date of `strftime_now` be
    set, which some templates write into every prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any],
        today: date | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Take the tokenizer and the settings.

        Args:
            tokenizer: Its template is rendered.
            template_kwargs: The recipe's variables for the template.
            today: The date that the template reads; None for the current date.
            chat_template: The recipe's `data.chat_template`, to name the template in errors.
        """
        self._tokenizer = tokenizer
        self._place = name_template(tokenizer, chat_template)
        self._template_kwargs = dict(template_kwargs)
        self.today = today or date.today()

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a template. Many base models do not have one."""
        return bool(self._tokenizer.chat_template)

    @property
    def has_unset_thinking_switch(self) -> bool:
        """Whether the template reads `enable_thinking`, and the recipe does not set it."""
        is_read = any(THINKING_SWITCH in text for text in list_templates(self._tokenizer).values())
        return is_read and THINKING_SWITCH not in self._template_kwargs

    def open(self, conversation: Conversation) -> OpenedChat:
        """Prepare a conversation, so that its prefixes can be rendered.

        Raises: TemplateRefusal if the tokenizer has named templates, but no default.
        """
        return self._open(conversation, self._dialect)

    def remove_repeated_reasoning(self, conversation: Conversation) -> Conversation:
        """Return the conversation with the reasoning of each answer in only one place."""
        messages = tuple(map(self._dialect.remove_repeated_reasoning, conversation.messages))
        return replace(conversation, messages=messages)

    def _open(self, conversation: Conversation, dialect: Dialect) -> OpenedChat:
        tools = [dict(tool) for tool in conversation.tools] or None
        own = {**conversation.template_kwargs, "tools": tools}
        return OpenedChat(
            compile_template(self._get_template(tools)),
            dialect.write_messages(conversation.messages),
            {
                **self._shared_variables,
                **_plain_template_data(own),
                DATE_FUNCTION: self.today.strftime,
            },
            dialect,
            self._place,
        )

    @cached_property
    def _dialect(self) -> Dialect:
        """How the template reads messages, found by rendering test messages.

        Content is passed as text, unless the template renders only typed parts. Reasoning moves
        from the content to its field if the template reads the field and renders it differently.
        """
        answer = Message("assistant", PROBE_ANSWER)
        texts, parts = Dialect(), Dialect(as_parts=True)
        reads_parts_only = PROBE_ANSWER not in self._render_probe(answer, texts) and (
            PROBE_ANSWER in self._render_probe(answer, parts)
        )
        dialect = parts if reads_parts_only else texts
        in_field = replace(answer, extras={"reasoning_content": PROBE_THOUGHT})
        inline = replace(answer, content=f"<think>\n{PROBE_THOUGHT}\n</think>\n\n{PROBE_ANSWER}")
        by_field = self._render_probe(in_field, dialect)
        by_content = self._render_probe(inline, dialect)
        reads_field, reads_block = PROBE_THOUGHT in by_field, PROBE_THOUGHT in by_content
        return replace(
            dialect,
            splits_thinking=reads_field and by_field != by_content,
            reads_block_only=reads_block and not reads_field,
        )

    def _render_probe(self, answer: Message, dialect: Dialect) -> str:
        """Return the text of a question with `answer`; empty if the template refuses them."""
        probe = Conversation((Message("user", PROBE_QUESTION), answer))
        try:
            return self._open(probe, dialect).render(2, served=False)
        except TemplateRefusal:
            return ""

    def _get_template(self, tools: list[dict[str, Any]] | None) -> str:
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several named templates without a default
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _shared_variables(self) -> dict[str, Any]:
        """The variables of every conversation: the special tokens and the recipe's arguments.

        `documents` is always defined, as in transformers.
        """
        special = self._tokenizer.special_tokens_map
        shared = {"documents": None, **special, **self._template_kwargs}
        return dict(_plain_template_data(shared))

    def find_end_of_turn(self, special: re.Pattern[str], known: re.Pattern[str]) -> str | None:
        """Return the special token that ends an answer; None if a `known` stop token ends it.

        The text after an answer is rendered twice: with a next turn and without it. The beginning
        that both have in common ends the turn. Its last special token is the stop token, and those
        before it are separators. A special token that text follows opens the next turn, so it does
        not count. If no token is left, the first special token after a final answer is returned.

        Args:
            special: Finds special tokens.
            known: Finds the stop tokens that are already known.
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
    """Return whether text other than white space follows a special token, before the next one."""
    following = special.search(after)
    return bool(after[: following.start() if following else None].strip())


class OpenedChat:
    """A conversation that is prepared, so that it can be rendered up to any of its messages."""

    def __init__(
        self,
        template: Any,
        messages: list[dict[str, Any]],
        variables: Mapping[str, Any],
        dialect: Dialect,
        place: str,
    ) -> None:
        self._template = template
        self._messages = messages
        self._variables = variables
        self._dialect = dialect
        self._place = place

    @property
    def num_messages(self) -> int:
        """The number of messages of the conversation."""
        return len(self._messages)

    def has_calls(self, index: int) -> bool:
        """Return whether a message calls tools."""
        return bool(self._messages[index].get("tool_calls"))

    def render(
        self,
        num_messages: int,
        *,
        served: bool,
        then: Sequence[Message] = (),
        instead: Mapping[int, Message] = MappingProxyType({}),
    ) -> str:
        """Return the text of the first messages.

        Args:
            num_messages: How many messages of the conversation to render.
            served: Add the generation prompt, as a server does before it generates an answer.
            then: Messages to append.
            instead: Messages by index. Their fields replace those of the message at the index. The
                role stays.

        Raises:
            TemplateRefusal: If the template fails.
            TemplateOverBudget: If the template asks for too much work.
        """
        messages = self._messages[:num_messages]
        if then:
            messages += self._dialect.write_messages(then)
        for index, other in instead.items():
            (fields,) = self._dialect.write_messages([other])
            messages[index] = {**messages[index], **fields, "role": messages[index]["role"]}
        variables = {"messages": messages, "add_generation_prompt": served, **self._variables}
        return render_template(self._template, variables, self._place)


def render_template(template: jinja2.Template, variables: Mapping[str, Any], place: str) -> str:
    """Return the text of a compiled template.

    Args:
        template: The template.
        variables: All variables that it may read, as plain data.
        place: The words that name the template in an error.

    Raises:
        TemplateRefusal: If the template fails.
        TemplateOverBudget: If the template asks for too much work.
    """
    try:
        return str(template.render(variables))
    except TemplateOverBudget as error:  # a DataError is a ValueError, so this comes first
        raise error.at(place) from None
    except TEMPLATE_FAULTS as error:
        raise TemplateRefusal(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Dialect:
    """The form in which a template reads messages.

    Attributes:
        as_parts: Content is a list of typed parts, as for models that also read images.
        splits_thinking: Reasoning is in its own field, not inside the content.
        reads_block_only: Reasoning is inside the content. The template shows no field of it.
    """

    as_parts: bool = False
    splits_thinking: bool = False
    reads_block_only: bool = False

    def write_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages in the form that the template reads."""
        if self.splits_thinking:
            messages = [move_thinking_to_field(message) for message in messages]
        views = [message.as_template_input() for message in messages]
        if self.as_parts:
            for view in views:
                if isinstance(view.get("content"), str):
                    view["content"] = [{"type": "text", "text": view["content"]}]
        return list(_alias_reasoning_fields(_plain_template_data(views)))

    def remove_repeated_reasoning(self, message: Message) -> Message:
        """Return the message with its reasoning only in the place that the template reads.

        If both the content and a field hold the reasoning, some templates print both, and some only
        one of them.
        """
        block = split_thinking_block(message) if message.reasoning.strip() else None
        if block is None:
            return message
        if self.reads_block_only and block[0].strip():
            return without_reasoning_fields(message)
        return move_thinking_to_field(message)


def name_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> str:
    """Return the words that name a template in an error.

    Args:
        tokenizer: The tokenizer that has the template.
        chat_template: The recipe's `data.chat_template`, if it names one.
    """
    if chat_template:
        return f"data.chat_template: {chat_template}"
    return f"the tokenizer's own template: {tokenizer.name_or_path}"


def list_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the tokenizer's templates by name. A single template has the name `default`."""
    template = tokenizer.chat_template or {}
    return {"default": template} if isinstance(template, str) else dict(template)


def depends_on_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the text of any of the tokenizer's templates depends on the current date."""
    templates = list_templates(tokenizer).values()
    return any(DATE_FUNCTION in text and FIXED_DATE_MACRO not in text for text in templates)


def hash_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the fingerprint of the tokenizer's template; empty if it has no template."""
    template = tokenizer.chat_template
    if not template:
        return ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_token_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern for any of the tokens, longest first. Without tokens it never matches."""
    longest_first = sorted({name for name in names if name}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def find_special_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that the tokenizer always turns into control tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]
