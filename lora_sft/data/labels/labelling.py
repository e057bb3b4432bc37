"""From examples to labelled rows, a batch at a time: the one door to what is learned.

The rule itself is in `chat_label_rule` (conversations, on text), `text_pairs` (no template) and
`token_spans` (characters to tokens). This module holds what they share: the stop tokens, the
special tokens, the policies of the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from lora_sft.data.drops import Drop, RowDropped
from lora_sft.data.examples.conversation import (
    Conversation,
    Example,
    PlainText,
    PromptCompletion,
    TokenizedExample,
)
from lora_sft.data.labelled_row import LabelledRow
from lora_sft.data.labels.chat_label_rule import ChatLabelRule, Notes, refuse_special_token
from lora_sft.data.labels.given_tokens import label_tokenized_example
from lora_sft.data.labels.rendered_chat import RenderedChat
from lora_sft.data.labels.text_pairs import TextPair, TextTokenizer, write_text_pair
from lora_sft.data.labels.token_spans import SpanTokenizer
from lora_sft.data.templates.rendering import (
    THINKING_SWITCH,
    ChatRenderer,
    depends_on_date,
    find_special_names,
    make_token_pattern,
)
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection

# Where an example came from, as a person reads it, and the example.
PlacedExample = tuple[str, Example]
# A labelled row before its text becomes tokens, or one whose example was tokens.
WrittenExample = RenderedChat | TextPair | LabelledRow
# One or more labelled rows, in turn order, or why there is none.
Labelled = tuple[LabelledRow, ...] | Drop


class Labeller:
    """Labels examples by one recipe's settings, with one tokenizer."""

    def __init__(
        self,
        data: DataSection,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Iterable[int],
    ) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer, data.chat_template_kwargs, read_day(data))
        self._special = make_token_pattern(find_special_names(tokenizer))
        self._stop_token_ids = frozenset(stop_token_ids)
        self._stop_token_ids |= self._find_template_stop()
        self._chat_rule = self._make_chat_rule()
        self._notes = Notes()
        self._spans = SpanTokenizer(tokenizer)
        self._texts = TextTokenizer(tokenizer)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The given stop tokens, the template's own end of turn, and any other in the notes."""
        added = self._tokenizer.added_tokens_encoder
        seen = {added[name] for name in self._notes.seen_stops if name in added}
        return self._stop_token_ids | seen

    @property
    def template_date(self) -> str | None:
        """The day that the template was shown, where it reads the clock."""
        return self._renderer.today.isoformat() if depends_on_date(self._tokenizer) else None

    @property
    def warnings(self) -> list[str]:
        """What is right by the rule and may still not be what was meant."""
        warnings = []
        is_open = self._renderer.has_unset_thinking_switch and self._notes.left_thinking_open
        if is_open and not self._notes.saw_thinking:
            warnings.append(
                "the template knows enable_thinking, it is not set, and no row reasons: the model "
                "is taught to think nothing; set data.chat_template_kwargs: "
                "{enable_thinking: false} to serve it without thinking"
            )
        if self._notes.in_place:
            warnings.append(
                f"{self._notes.in_place:,} rows differ from serving: they learn earlier turns as "
                "the template's history shows them (data.rewritten_history: in_place)"
            )
        if self._notes.lost_context:
            warnings.append(
                f"the chat template leaves out or changes what context messages or tools say in "
                f"{self._notes.lost_context:,} rows (first: {self._notes.first_lost_context})"
            )
        return warnings

    def take_notes(self) -> Notes:
        """The notes on the examples labelled since the last time, to be added where they are kept.

        Examples may be labelled in another process than the one that says what was found.
        """
        notes, self._chat_rule.notes = self._chat_rule.notes, Notes()
        return notes

    def add_notes(self, notes: Notes) -> None:
        """Keep what was noted on examples, in their order."""
        self._notes.add(notes)

    def label(self, examples: Sequence[PlacedExample]) -> list[Labelled]:
        """The labelled rows of each example, or its drop, in order.

        Raises: DataError for what the recipe forbids or lacks.
        """
        written = [self._write(where, example) for where, example in examples]
        kept = [one for each in written if not isinstance(each, Drop) for one in each]
        chats = self._spans.tokenize([one for one in kept if isinstance(one, RenderedChat)])
        pairs = self._texts.tokenize([one for one in kept if isinstance(one, TextPair)])
        return list(_regroup(written, iter(chats), iter(pairs)))

    def _write(self, where: str, example: Example) -> list[WrittenExample] | Drop:
        try:
            written = self._write_example(where, example)
            for each in written:
                _check_is_unicode(each)
        except RowDropped as dropped:
            return dropped.drop
        return written

    def _write_example(self, where: str, example: Example) -> list[WrittenExample]:
        if isinstance(example, Conversation):
            self._check_has_template(where)
            chats = self._chat_rule.write_chats(example, where)
            if THINKING_SWITCH not in example.template_kwargs:
                self._chat_rule.notes.left_thinking_open = True
            return list(chats)
        if isinstance(example, TokenizedExample):
            return [
                label_tokenized_example(example, len(self._tokenizer), self._data.loss_on, where)
            ]
        pair = write_text_pair(example, self._data.loss_on, where)
        return [replace(pair, is_escaped=self._must_escape(example, where))]

    def _must_escape(self, example: PlainText | PromptCompletion, where: str) -> bool:
        """Whether a text holds special-token strings that are to be ordinary text."""
        policy = self._data.special_tokens_in_content
        if policy == "allow":
            return False
        if isinstance(example, PlainText):
            texts = [example.text]
        else:
            texts = [example.prompt, example.completion]
        found = next((match for text in texts if (match := self._special.search(text))), None)
        if found is not None and policy != "escape":
            refuse_special_token(found.group(), where, policy)
        return found is not None

    def _check_has_template(self, where: str) -> None:
        if not self._renderer.has_template:
            raise DataError(
                "the row is a conversation, and the tokenizer has no chat template",
                where,
                "set data.chat_template: plain (text headers, no new tokens), or a .jinja file",
            )

    def _find_template_stop(self) -> frozenset[int]:
        if not self._renderer.has_template:
            return frozenset()
        known = self._make_stop_pattern()
        name = self._renderer.find_end_of_turn(self._special, known)
        return (
            frozenset() if name is None else frozenset({self._tokenizer.added_tokens_encoder[name]})
        )

    def _make_stop_pattern(self) -> re.Pattern[str]:
        stops = [str(self._tokenizer.decode([stop])) for stop in sorted(self._stop_token_ids)]
        return make_token_pattern(stops)

    def _make_chat_rule(self) -> ChatLabelRule:
        return ChatLabelRule(
            self._renderer,
            self._make_stop_pattern(),
            self._special,
            loss_on=self._data.loss_on,
            rewritten_history=self._data.rewritten_history,
            special_tokens_in_content=self._data.special_tokens_in_content,
        )


def read_day(data: DataSection) -> date:
    """The day that a template sees when it asks for the date."""
    return date.fromisoformat(data.template_date) if data.template_date else date.today()


def _check_is_unicode(written: WrittenExample) -> None:
    """Half a surrogate pair is legal among JSON's escapes, and no tokenizer takes it."""
    if isinstance(written, LabelledRow):
        return
    if isinstance(written, RenderedChat):
        text = written.text
    else:
        text = written.prompt + written.completion
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = "a text holds half a surrogate pair, which is no character"
        raise RowDropped("malformed", detail) from error


def _regroup(
    written: Sequence[list[WrittenExample] | Drop],
    chats: Iterator[LabelledRow],
    pairs: Iterator[LabelledRow],
) -> Iterator[Labelled]:
    """Put the labelled rows back under their examples, both streams being in order."""
    for each in written:
        if isinstance(each, Drop):
            yield each
            continue
        done = [_take_labelled_row(one, chats, pairs) for one in each]
        learned = tuple(row for row in done if row.turns)
        yield learned or Drop("no_target", "no token is left to learn")


def _take_labelled_row(
    written: WrittenExample, chats: Iterator[LabelledRow], pairs: Iterator[LabelledRow]
) -> LabelledRow:
    if isinstance(written, LabelledRow):
        return written
    return next(chats) if isinstance(written, RenderedChat) else next(pairs)
