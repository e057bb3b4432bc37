"""Write a preview as one HTML page that needs no network and no other file.

The page holds its rows as data: token ids, and one table of all tokens in them. A script draws only
the rows that come into view, so that a page of a few thousand rows stays fast. A browser never
reads content as markup: the template escapes its texts, and the script sets text, never HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, TextIO

import jinja2

from lora_sft.data.preview.shown_rows import (
    Preview,
    PreviewRow,
    PreviewSummary,
    excerpt_row,
    find_fix,
)
from lora_sft.data.preview.token_pieces import TokenPieces, make_visible

TEMPLATE_FILE = "page.html.jinja"
EXCERPT_CHARACTERS = 600
CHART_BARS = 80
CHART_HEADROOM = 1.04  # leaves space between the longest row and the edge
# A max_length above this multiple of the longest row is only named at the chart's edge. Otherwise
# the bars would be too narrow.
CHART_LARGEST_SCALE = 2
LENGTH_SHARES = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def write_page(preview: Preview, recipe_name: str, model_name: str, file: TextIO) -> PreviewSummary:
    """Follow the rows, write the page, and return the summary."""
    rows = PageRows(preview)
    summary = preview.follow(rows.add)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["grouped"] = "{:,}".format
    environment.filters["percent"] = _format_percent
    environment.filters["visible"] = make_visible
    page = environment.get_template(TEMPLATE_FILE).render(
        recipe=recipe_name,
        model=model_name,
        data=preview.data,
        note=_describe_shown(summary),
        summary=summary,
        account=summary.account,
        reasons=_list_reasons(summary),
        chart=make_length_chart(summary.lengths, preview.data.max_length),
        costs=[
            _make_length_cost(max_length, summary.lengths)
            for max_length in _list_max_lengths(preview, summary)
        ],
        page_data={**rows.as_dict(), "lengths": sorted(summary.lengths.items())},
    )
    file.write(page)
    return summary


def _format_percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if share == 0 or share >= 0.1 else "< 0.1 %"


def _describe_shown(summary: PreviewSummary) -> str:
    """Return a sentence that says which rows are on the page."""
    if summary.num_shown == summary.num_rows:
        return f"All {summary.num_rows:,} rows are on this page."
    also = f", followed by {summary.num_later_drops:,} dropped rows"
    return (
        f"{summary.num_shown:,} of {summary.num_rows:,} rows are on this page"
        f"{also if summary.num_later_drops else ''} (--rows N shows N rows). "
        "The numbers above cover all rows."
    )


def _list_reasons(summary: PreviewSummary) -> list[tuple[str, int, str]]:
    """Return name, count and first example of each drop reason, the most frequent first."""
    dropped = summary.account.dropped
    ordered = sorted(dropped, key=lambda reason: (-dropped[reason], reason))
    return [(name, dropped[name], summary.account.examples[name]) for name in ordered]


class PageRows:
    """The rows of a page in a short form, and a table of all tokens in them."""

    def __init__(self, preview: Preview) -> None:
        self._preview = preview
        self._pieces = TokenPieces(preview.tokenizer)
        self._tokens: dict[int, tuple[str, str]] = {}
        self._rows: list[dict[str, Any]] = []

    def add(self, row: PreviewRow) -> None:
        """Append one row."""
        source_row = row.outcome.source_row
        place = {"where": make_visible(source_row.where), "row": source_row.row}
        self._rows.append(place | (self._describe_kept(row) or self._describe_dropped(row)))

    def _describe_dropped(self, row: PreviewRow) -> dict[str, Any]:
        assert row.drop is not None, "a row without tokens was dropped"
        return {
            "dropped": row.drop.reason,
            "detail": make_visible(row.drop.detail),
            "fix": find_fix(row.outcome, self._preview.data.max_length),
            "excerpt": make_visible(excerpt_row(row.outcome.source_row, EXCERPT_CHARACTERS)),
        }

    def _describe_kept(self, row: PreviewRow) -> dict[str, Any] | None:
        if row.labelled is None:
            return None
        ids = row.labelled.input_ids
        return {
            "ids": ids,
            "odd": self._add_tokens(ids),
            "turns": [
                [turn.role, turn.message, turn.start, turn.end] for turn in row.labelled.turns
            ],
            "built": row.labelled.built,
            "part": [row.position + 1, len(row.outcome.labelled_rows), row.num_overlong],
            "expanded": row.is_expanded,
            "cut": row.outcome.is_truncated and len(ids) == self._preview.data.max_length,
        }

    def _add_tokens(self, ids: list[int]) -> dict[int, str]:
        """Add new tokens to the table.

        Returns: The texts of tokens that differ from the table in this row, by position.
        """
        odd = {}
        for position, (token_id, piece) in enumerate(zip(ids, self._pieces.cut(ids), strict=True)):
            visible = make_visible(piece)
            if token_id not in self._tokens:
                name = self._preview.tokenizer.convert_ids_to_tokens(token_id)
                self._tokens[token_id] = (make_visible(str(name)), visible)
            elif self._tokens[token_id][1] != visible:
                odd[position] = visible
        return odd

    def as_dict(self) -> dict[str, Any]:
        """Return the data of the page."""
        added = self._preview.tokenizer.added_tokens_decoder
        special = [number for number, token in added.items() if token.special]
        return {"rows": self._rows, "tokens": self._tokens, "special": special}


@dataclass(frozen=True)
class LengthChart:
    """A histogram of labelled rows by their length in tokens.

    Attributes:
        bars: For each bar its first and last length, its rows, and its height from 0 to 1.
        end_tokens: The length at the right edge.
    """

    bars: tuple[tuple[int, int, int, float], ...]
    end_tokens: int
    max_length: int
    longest_tokens: int

    @property
    def mark(self) -> float:
        """The position of max_length, as a share of the width."""
        return min(self.max_length / self.end_tokens, 1.0)


def make_length_chart(lengths: Mapping[int, int], max_length: int) -> LengthChart:
    """Return the histogram of these lengths (tokens -> labelled rows)."""
    longest = max(lengths, default=0)
    scale = max_length if max_length <= CHART_LARGEST_SCALE * longest else longest
    end = ceil(max(longest, scale, 1) * CHART_HEADROOM)
    step = max(1, ceil(end / CHART_BARS))
    counts = [0] * ceil(end / step)
    for length, rows in lengths.items():
        counts[(length - 1) // step] += rows
    tallest = max(counts, default=0) or 1
    bars = tuple(
        (index * step + 1, (index + 1) * step, rows, rows / tallest)
        for index, rows in enumerate(counts)
    )
    return LengthChart(bars, len(counts) * step, max_length, longest)


@dataclass(frozen=True)
class LengthCost:
    """The cost of one `max_length`.

    Attributes:
        rows: Labelled rows that are too long.
        dropped_tokens: The tokens that are lost if these rows are dropped.
        cut_tokens: The tokens that are lost if these rows are cut.
    """

    max_length: int
    rows: int
    dropped_tokens: int
    cut_tokens: int


def _make_length_cost(max_length: int, lengths: Mapping[int, int]) -> LengthCost:
    over = {length: rows for length, rows in lengths.items() if length > max_length}
    return LengthCost(
        max_length=max_length,
        rows=sum(over.values()),
        dropped_tokens=sum(length * rows for length, rows in over.items()),
        cut_tokens=sum((length - max_length) * rows for length, rows in over.items()),
    )


def _list_max_lengths(preview: Preview, summary: PreviewSummary) -> list[int]:
    """Return the recipe's `max_length`, and those that fit each share of `LENGTH_SHARES`."""
    total, seen = sum(summary.lengths.values()), 0
    shares = list(LENGTH_SHARES)
    chosen = {preview.data.max_length}
    for length, rows in sorted(summary.lengths.items()):
        seen += rows
        while shares and seen >= shares[0] * total:
            chosen.add(length)
            shares.pop(0)
    return sorted(chosen)
