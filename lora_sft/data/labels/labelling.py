"""Turn examples into labelled rows, one batch at a time.

Other rooms call only this module. The rules are in `chat_label_rule` (conversations), `text_pairs`
(examples without a template), `given_tokens` (token ids) and `token_spans` (from characters to
tokens). This module holds the values that they share: stop tokens, special tokens, and the recipe's
policies.
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
from lora_sft.data.labels.text_pairs import TextPair, TextTokenizer, make_text_pair
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

# The place of an example for messages (file and line), and the example.
PlacedExample = tuple[str, Example]
# A row before its text is tokenised. An example of token ids is a labelled row already.
UntokenizedRow = RenderedChat | TextPair | LabelledRow
# The labelled rows of one example, in turn order, or the reason why it is dropped.
LabelResult = tuple[LabelledRow, ...] | Drop


class Labeller:
    """A converter from examples to labelled rows, with one recipe's settings and one tokenizer."""

    def __init__(
        self,
        data: DataSection,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Iterable[int],
    ) -> None:
        self._data = data
        self._tokenizer = tokenizer
        today = find_template_date(data)
        self._renderer = ChatRenderer(
            tokenizer, data.chat_template_kwargs, today, data.chat_template
        )
        self._special = make_token_pattern(find_special_names(tokenizer))
        self._stop_token_ids = frozenset(stop_token_ids)
        self._stop_token_ids |= self._find_template_stop()
        self._chat_rule = self._make_chat_rule()
        self._notes = Notes()
        self._spans = SpanTokenizer(tokenizer)
        self._texts = TextTokenizer(tokenizer)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The given stop tokens, the template's own end of turn, and those seen in the rows."""
        added = self._tokenizer.added_tokens_encoder
        seen = {added[name] for name in self._notes.seen_stops if name in added}
        return self._stop_token_ids | seen

    @property
    def template_date(self) -> str | None:
        """The date that the template was given (YYYY-MM-DD), or None if it does not read it."""
        return self._renderer.today.isoformat() if depends_on_date(self._tokenizer) else None

    @property
    def warnings(self) -> list[str]:
        """Sentences about rows that follow the label rule but may surprise the user."""
        warnings = []
        is_open = self._renderer.has_unset_thinking_switch and self._notes.left_thinking_open
        if is_open and not self._notes.saw_thinking:
            warnings.append(
                "the chat template has a switch enable_thinking, the recipe does not set it, and "
                "no row has reasoning: the model learns to write empty reasoning; to train and "
                "serve it without reasoning, set data.chat_template_kwargs: "
                "{enable_thinking: false}"
            )
        if self._notes.in_place:
            warnings.append(
                f"{self._notes.in_place:,} rows learn earlier turns as the chat template's history "
                "shows them, not as they are served (data.rewritten_history: in_place)"
            )
        if self._notes.lost_context:
            warnings.append(
                f"the chat template leaves out or changes parts of context messages or tools in "
                f"{self._notes.lost_context:,} rows (first: {self._notes.first_lost_context})"
            )
        return warnings

    def take_notes(self) -> Notes:
        """Return the notes made since the last call, and begin new ones.

        A worker process labels examples and returns its notes. The main process adds them with
        `add_notes`, because the main process prints the warnings.
        """
        notes, self._chat_rule.notes = self._chat_rule.notes, Notes()
        return notes

    def add_notes(self, notes: Notes) -> None:
        """Add the notes of one batch. Call this in the order of the batches."""
        self._notes.add(notes)

    def label(self, examples: Sequence[PlacedExample]) -> list[LabelResult]:
        """Return the labelled rows of each example, or its drop, in order.

        Raises: DataError if the recipe forbids an example, or lacks a setting that it needs.
        """
        prepared = [self._prepare(where, example) for where, example in examples]
        kept = [row for rows in prepared if not isinstance(rows, Drop) for row in rows]
        chats = self._spans.tokenize([row for row in kept if isinstance(row, RenderedChat)])
        pairs = self._texts.tokenize([row for row in kept if isinstance(row, TextPair)])
        return list(_regroup(prepared, iter(chats), iter(pairs)))

    def _prepare(self, where: str, example: Example) -> list[UntokenizedRow] | Drop:
        try:
            rows = self._make_untokenized_rows(where, example)
            for row in rows:
                _check_is_unicode(row)
        except RowDropped as dropped:
            return dropped.drop
        return rows

    def _make_untokenized_rows(self, where: str, example: Example) -> list[UntokenizedRow]:
        if isinstance(example, Conversation):
            self._check_has_template(where)
            chats = self._chat_rule.render_chats(example, where)
            if THINKING_SWITCH not in example.template_kwargs:
                self._chat_rule.notes.left_thinking_open = True
            return list(chats)
        if isinstance(example, TokenizedExample):
            return [
                label_tokenized_example(example, len(self._tokenizer), self._data.loss_on, where)
            ]
        pair = make_text_pair(example, self._data.loss_on, where)
        return [replace(pair, is_escaped=self._must_escape(example, where))]

    def _must_escape(self, example: PlainText | PromptCompletion, where: str) -> bool:
        """Return whether the example has special-token strings that must become ordinary text."""
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
                "the row is a conversation, but the tokenizer has no chat template",
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


def find_template_date(data: DataSection) -> date:
    """Return the date that the chat template is given: the recipe's date, else today."""
    return date.fromisoformat(data.template_date) if data.template_date else date.today()


def _check_is_unicode(row: UntokenizedRow) -> None:
    """Check that the row's text is valid Unicode.

    JSON can write half of a surrogate pair as an escape, but no tokenizer accepts it.

    Raises: RowDropped if the text contains half of a surrogate pair.
    """
    if isinstance(row, LabelledRow):
        return
    text = row.text if isinstance(row, RenderedChat) else row.prompt + row.completion
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = "a text contains half of a surrogate pair, which is not a valid character"
        raise RowDropped("malformed", detail) from error


def _regroup(
    prepared: Sequence[list[UntokenizedRow] | Drop],
    chats: Iterator[LabelledRow],
    pairs: Iterator[LabelledRow],
) -> Iterator[LabelResult]:
    """Yield the labelled rows of each example; `chats` and `pairs` are in the examples' order."""
    for rows in prepared:
        if isinstance(rows, Drop):
            yield rows
            continue
        labelled = [_take_labelled_row(row, chats, pairs) for row in rows]
        learned = tuple(row for row in labelled if row.turns)
        yield learned or Drop("no_target", "no token is left to learn")


def _take_labelled_row(
    row: UntokenizedRow, chats: Iterator[LabelledRow], pairs: Iterator[LabelledRow]
) -> LabelledRow:
    if isinstance(row, LabelledRow):
        return row
    return next(chats) if isinstance(row, RenderedChat) else next(pairs)
