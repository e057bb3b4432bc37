"""Conversations to text, through the chat template, and what the tokenizer calls special.

Rendering is the template's business alone: nothing is added, trimmed or repaired here, so that
what is trained is what the same template serves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from lora_sft.data.conversation import Conversation, Message
from lora_sft.data.drops import RowDropped

PROBE_QUESTION = "Kwestion"
PROBE_ANSWER = "Ansswer"


# Templates are programs: these are what a conversation they did not expect makes them raise.
TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class TemplateRefusal(RowDropped):
    """The chat template raised on a conversation; the detail is the template's own message."""

    def __init__(self, detail: str) -> None:
        super().__init__("template_refused", detail)


class ChatRenderer:
    """One tokenizer's template with the recipe's template kwargs."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs)

    @property
    def has_template(self) -> bool:
        """Whether there is a template at all; base models often have none."""
        return bool(self._tokenizer.chat_template)

    def render(self, conversation: Conversation, num_messages: int, *, served: bool) -> str:
        """The first `num_messages` as text; `served` adds the prompt that opens the answer.

        Raises: TemplateRefusal.
        """
        kwargs = {**self._template_kwargs, **conversation.template_kwargs}
        messages = [message.as_template_input() for message in conversation.messages[:num_messages]]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tools=[dict(tool) for tool in conversation.tools] or None,
                add_generation_prompt=served,
                tokenize=False,
                **kwargs,
            )
        except TEMPLATE_FAULTS as error:
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error
        return str(rendered)

    def find_end_of_turn(self, special: re.Pattern[str], known: re.Pattern[str]) -> str | None:
        """The special token that the template itself ends an answer with, unless it is `known`.

        What follows an answer whether or not the conversation goes on ends the turn, and its last
        special token is the stop: those before it are separators. Where nothing is common, the
        first special token after a final answer is.
        """
        final, followed = self._render_after_answer(2), self._render_after_answer(3)
        pairs = zip(final, followed, strict=False)
        common = "".join(left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        ends_turn = special.findall(common)
        if ends_turn:
            return None if known.search(common) else str(ends_turn[-1])
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
            text = self.render(probe, num_messages, served=False)
        except TemplateRefusal:
            return ""
        return text.rpartition(PROBE_ANSWER)[2] if PROBE_ANSWER in text else ""


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
