"""The preview as text: learned tokens are in brackets, and in colour on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_sft.data.corpus.account_table import render_account_table
from lora_sft.data.preview.shown_rows import (
    Preview,
    PreviewRow,
    PreviewSummary,
    Segment,
    TokenizerFacts,
    excerpt_row,
    find_fix,
    find_segments,
)
from lora_sft.data.preview.token_pieces import TokenPieces, make_visible

if TYPE_CHECKING:
    from lora_sft.data.labelled_row import LabelledRow, Turn

FILE_COLUMNS = 100
OPENING, CLOSING = "⟦", "⟧"
# Neighbouring tokens have different shades, so that a reader sees where one ends.
LEARNED_STYLES = ("#06351c on #a6e3b8", "#06351c on #86d3a0")
UNLEARNED_STYLE = "dim"
SPECIAL_STYLE = "bold"
BRACKET_STYLE = "bold green"
DROPPED_STYLE = "bold red"
# Without --row, only this many tokens are shown at the start and at the end of a long segment.
SEGMENT_END_TOKENS = 120
EXCERPT_CHARACTERS = 300
TEMPLATE_HASH_CHARACTERS = 12


def make_file_console(file: TextIO) -> Console:
    """Return a console that writes to a file, without colour and with a fixed width."""
    return Console(file=file, width=FILE_COLUMNS, no_color=True, highlight=False)


class PreviewPrinter:
    """Prints the rows of a preview one by one, then the account of the whole split."""

    def __init__(self, console: Console, preview: Preview) -> None:
        self._console = console
        self._preview = preview
        self._pieces = TokenPieces(preview.tokenizer)
        added = preview.tokenizer.added_tokens_decoder
        self._special_ids = {number for number, token in added.items() if token.special}
        self._is_one_row = preview.selection.row is not None

    def print(self) -> PreviewSummary:
        """Print the rows, the account and the tokenizer. Return the summary of the split."""
        summary = self._preview.follow(self._print_row)
        self._console.print(render_account_table({summary.split: summary.account}))
        self._print_line(_describe_tokenizer(summary.tokenizer, summary.template_date))
        if not self._is_one_row:
            self._print_line(Text(_describe_options(summary), style=UNLEARNED_STYLE))
        return summary

    def _print_line(self, text: Text | str) -> None:
        """Print a text without wrapping it, so that in a pipe it keeps its own line breaks."""
        self._console.print(text, soft_wrap=True, markup=False)

    def _print_row(self, row: PreviewRow) -> None:
        self._print_line(_describe_row(row, self._preview.data.max_length))
        if row.labelled is None:
            self._print_dropped(row)
            return
        pieces = [make_visible(piece) for piece in self._pieces.cut(row.labelled.input_ids)]
        text = Text()
        for segment in find_segments(row.labelled):
            self._append_segment(text, segment, row.labelled, pieces)
        text.rstrip()
        self._print_line(text)
        self._print_line("")
        if self._is_one_row:
            self._console.print(self._make_token_table(row.labelled, pieces))

    def _print_dropped(self, row: PreviewRow) -> None:
        fix = find_fix(row.outcome, self._preview.data.max_length)
        excerpt = excerpt_row(row.outcome.source_row, EXCERPT_CHARACTERS)
        self._print_line(Text(make_visible(excerpt), style=UNLEARNED_STYLE))
        self._print_line(Text(f"fix: {fix}\n"))

    def _append_segment(
        self, text: Text, segment: Segment, row: LabelledRow, pieces: list[str]
    ) -> None:
        if segment.turn is not None:
            text.append(OPENING, BRACKET_STYLE)
        for position in self._list_shown_positions(segment):
            if position is None:
                left_out = segment.end - segment.start - 2 * SEGMENT_END_TOKENS
                text.append(f"\n… {left_out:,} tokens …\n", SPECIAL_STYLE)
                continue
            text.append(pieces[position], self._find_style(row, position, segment.turn))
        if segment.turn is not None:
            text.append(CLOSING, BRACKET_STYLE)

    def _list_shown_positions(self, segment: Segment) -> Iterator[int | None]:
        """Yield the positions to print. None stands for the middle that is left out."""
        if self._is_one_row or segment.end - segment.start <= 2 * SEGMENT_END_TOKENS:
            yield from range(segment.start, segment.end)
            return
        yield from range(segment.start, segment.start + SEGMENT_END_TOKENS)
        yield None
        yield from range(segment.end - SEGMENT_END_TOKENS, segment.end)

    def _find_style(self, row: LabelledRow, position: int, turn: Turn | None) -> str:
        style = UNLEARNED_STYLE if turn is None else LEARNED_STYLES[position % 2]
        is_special = row.input_ids[position] in self._special_ids
        return f"{SPECIAL_STYLE} {style}" if is_special else style

    def _make_token_table(self, row: LabelledRow, pieces: list[str]) -> Table:
        """Return a table with one line per token: its position, id, text and learned turn."""
        table = Table("position", "id", "token", "text", "learned in")
        tokens = self._preview.tokenizer.convert_ids_to_tokens(row.input_ids)
        for segment in find_segments(row):
            for position in range(segment.start, segment.end):
                learned_in = "" if segment.turn is None else _describe_turn(segment.turn)
                table.add_row(
                    str(position),
                    str(row.input_ids[position]),
                    Text(make_visible(tokens[position]).strip("\n")),
                    Text(pieces[position].strip("\n")),
                    learned_in,
                    style=UNLEARNED_STYLE if segment.turn is None else None,
                )
        return table


def _describe_turn(turn: Turn) -> str:
    return turn.role if turn.message is None else f"message {turn.message} ({turn.role})"


def _describe_row(row: PreviewRow, max_length: int) -> Text:
    """Return the line above a row: its source and its learned tokens, or why it is dropped."""
    source_row = row.outcome.source_row
    text = Text(make_visible(source_row.where), style="bold")
    if source_row.line is not None:
        text.append(f"  row {source_row.row}")
    if row.drop is not None:
        text.append(f"  dropped: {row.drop.reason}", DROPPED_STYLE)
        text.append(f" ({make_visible(row.drop.detail)})" if row.drop.detail else "")
        return text
    assert row.labelled is not None, "a row that is not dropped has tokens"
    learned, tokens = row.labelled.num_target_tokens, len(row.labelled.input_ids)
    text.append(f"  {learned:,} of {tokens:,} tokens learned")
    notes = [] if row.labelled.built == "rendered" else [row.labelled.built]
    if row.is_expanded:
        overlong = f" ({row.num_overlong} more are overlong)" if row.num_overlong else ""
        notes.append(f"part {row.position + 1} of {len(row.outcome.labelled_rows)}{overlong}")
    if row.outcome.is_truncated and tokens == max_length:
        notes.append("cut at max_length")
    text.append("".join(f", {note}" for note in notes))
    return text


def _describe_tokenizer(facts: TokenizerFacts, template_date: str | None) -> str:
    stops = " ".join(facts.stop_tokens) or "(none)"
    template = facts.template_sha256[:TEMPLATE_HASH_CHARACTERS] or "(none)"
    return (
        f"tokenizer: eos {facts.eos or '(none)'}, pad {facts.pad or '(none)'}, "
        f"stop tokens {stops}, chat template {template}"
        + (f" (rendered with the date {template_date})" if template_date else "")
    )


def _describe_options(summary: PreviewSummary) -> str:
    shown = f"{OPENING}learned{CLOSING}; {summary.num_shown:,} of {summary.num_rows:,} rows shown"
    return (
        f"{shown}; for more rows: --rows N; for one row, token by token: --row I; "
        "for a page: --format html --out FILE"
    )
