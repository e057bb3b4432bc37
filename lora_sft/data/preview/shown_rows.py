"""Select the rows of a preview, with the same tokens and labels that training uses.

The source rows are followed in the same way as for the corpus (`fill_splits`) and handed on one by
one. So memory never holds the whole split. The account covers the whole split, even if only some
rows are shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from transformers import PreTrainedTokenizerBase

from lora_sft.data.corpus.account import Account, AccountTally
from lora_sft.data.corpus.building import SplitSink, fill_splits, list_splits
from lora_sft.data.corpus.cache import with_cached_template_date
from lora_sft.data.corpus.source_row_following import SourceRowFollower
from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome
from lora_sft.data.drops import FIXES, Drop
from lora_sft.data.labelled_row import LabelledRow, Turn
from lora_sft.data.labels.labelling import Labeller
from lora_sft.data.rows.row_sources import SourceRow
from lora_sft.data.templates.rendering import hash_template
from lora_sft.data.templates.tokenizer import find_stop_token_ids, load_tokenizer
from lora_sft.errors import DataError, RecipeError

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, Recipe

SUBSAMPLED = "subsampled"


@dataclass(frozen=True)
class Selection:
    """The rows of a split to show.

    Attributes:
        num_rows: Show this many rows, from the first one; None shows all rows.
        row: Show only the row with this number in its source.
        num_later_drops: Show this many dropped rows after the first `num_rows` as well. Drops are
            rare, and users look for them. Rows that `repeat` leaves out do not count as drops here.
    """

    split: str = "train"
    num_rows: int | None = None
    row: int | None = None
    num_later_drops: int = 0


@dataclass(frozen=True)
class PreviewRow:
    """A labelled row as training sees it, or a source row that was dropped (`labelled` is None)."""

    outcome: SourceRowOutcome
    labelled: LabelledRow | None
    position: int = 0  # among the labelled rows of the same source row

    @property
    def drop(self) -> Drop | None:
        return self.outcome.drop

    @property
    def is_expanded(self) -> bool:
        """Whether the source row became several labelled rows."""
        return self.outcome.is_expanded

    @property
    def num_overlong(self) -> int:
        """How many labelled rows of the same source row were too long."""
        return max(self.outcome.num_labelled - len(self.outcome.labelled_rows), 0)

    def as_dict(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return the row as `preview --format json` writes it. A dropped row has no tokens."""
        source_row, drop = self.outcome.source_row, self.drop
        place = {"source": source_row.source, "row": source_row.row, "line": source_row.line}
        row = self.labelled or LabelledRow([], [], ())
        return {
            **place,
            "input_ids": row.input_ids,
            "labels": row.labels,
            "tokens": tokenizer.convert_ids_to_tokens(row.input_ids),
            "built": None if self.labelled is None else row.built,
            "turns": [_turn_as_dict(turn, row.input_ids, tokenizer) for turn in row.turns],
            "dropped": None if drop is None else drop.reason,
        }


def _turn_as_dict(
    turn: Turn, input_ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {**vars(turn), "text": tokenizer.decode(input_ids[turn.start : turn.end])}


@dataclass(frozen=True)
class Segment:
    """A stretch of tokens that are all learned (as `turn`) or all not learned (`turn` is None).

    `end` is exclusive.
    """

    start: int
    end: int
    turn: Turn | None


def find_segments(row: LabelledRow) -> list[Segment]:
    """Return the segments of a labelled row in order. They cover the whole row."""
    segments, position = [], 0
    for turn in row.turns:
        segments += [Segment(position, turn.start, None), Segment(turn.start, turn.end, turn)]
        position = turn.end
    segments.append(Segment(position, len(row.input_ids), None))
    return [segment for segment in segments if segment.start < segment.end]


@dataclass(frozen=True)
class TokenizerFacts:
    """The facts about a tokenizer that decide the tokens of a preview."""

    eos: str
    pad: str
    stop_tokens: tuple[str, ...]
    template_sha256: str


@dataclass(frozen=True)
class PreviewSummary:
    """The summary of the whole split.

    Attributes:
        lengths: Number of tokens before the length policy -> how many labelled rows have it.
            Repeats are not counted.
        num_rows: All rows of the split: labelled rows and dropped source rows.
        num_shown: The selected rows that were shown.
        num_later_drops: The dropped rows that were shown after them.
        warnings: Sentences for the user.
        template_date: The date (YYYY-MM-DD) that the template was given, if it reads the clock.
    """

    split: str
    account: Account
    tokenizer: TokenizerFacts
    lengths: Mapping[int, int]
    num_rows: int
    num_shown: int
    num_later_drops: int
    warnings: tuple[str, ...]
    template_date: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the parts of the JSON document that follow the rows."""
        return {"account": self.account.as_dict(), "tokenizer": vars(self.tokenizer)}


@dataclass(frozen=True)
class Preview:
    """The rows of one split, as training makes them with this tokenizer."""

    data: DataSection
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: frozenset[int]
    selection: Selection

    def follow(self, show: Callable[[PreviewRow], None]) -> PreviewSummary:
        """Pass the selected rows to `show` in source order, and return the summary of the split.

        Raises: DataError if a data set cannot be read, or if the selected row does not exist.
        """
        labeller = Labeller(self.data, self.tokenizer, self.stop_token_ids)
        shown = _ShownSplit(self.selection, show)
        others = _make_other_splits(self.data, self.selection)
        sinks: dict[str, SplitSink] = {**others, self.selection.split: shown}
        follower = SourceRowFollower(self.data, labeller, self.tokenizer.chat_template)
        fill_splits(self.data, follower, sinks)
        if self.selection.row is not None and not shown.num_shown:
            splits_with_row = [name for name, split in others.items() if split.has_row]
            _refuse_missing_row(self.selection, splits_with_row)
        return PreviewSummary(
            split=self.selection.split,
            account=shown.tally.finish(),
            tokenizer=_make_tokenizer_facts(self.tokenizer, labeller.stop_token_ids),
            lengths=shown.lengths,
            num_rows=shown.num_rows,
            num_shown=shown.num_shown,
            num_later_drops=shown.num_later_drops,
            warnings=tuple(labeller.warnings),
            template_date=labeller.template_date,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `preview --format json` writes."""
        rows: list[dict[str, Any]] = []
        summary = self.follow(lambda row: rows.append(row.as_dict(self.tokenizer)))
        return {"rows": rows, **summary.as_dict()}


def open_preview(recipe: Recipe, selection: Selection) -> Preview:
    """Load the recipe's tokenizer. The source rows are read later, when they are followed.

    A template that reads the clock gets the same date as in training.

    Raises:
        RecipeError: If the recipe does not ask for the split.
        DataError: If a data file cannot be found.
    """
    _check_has_split(recipe, selection.split)
    tokenizer = load_tokenizer(recipe.model, recipe.tokenizer, recipe.data)
    stops = find_stop_token_ids(tokenizer, recipe.model, recipe.data.stop_tokens)
    data = with_cached_template_date(recipe.data, tokenizer, stops)
    return Preview(data, tokenizer, stops, selection)


def write_document(preview: Preview, file: TextIO) -> PreviewSummary:
    """Write the document of `preview --format json`, one row per line.

    Only one row is in memory at a time.
    """
    file.write('{"rows": [')
    separator = "\n"

    def write_row(row: PreviewRow) -> None:
        nonlocal separator
        file.write(separator + json.dumps(row.as_dict(preview.tokenizer), ensure_ascii=False))
        separator = ",\n"

    summary = preview.follow(write_row)
    file.write("\n]")
    for name, value in summary.as_dict().items():
        file.write(f',\n"{name}": {json.dumps(value, ensure_ascii=False)}')
    file.write("}\n")
    return summary


class _ShownSplit:
    """A receiver of source rows that counts them and shows the selected ones."""

    def __init__(self, selection: Selection, show: Callable[[PreviewRow], None]) -> None:
        self._selection = selection
        self._show = show
        self.tally = AccountTally()
        self.lengths: Counter[int] = Counter()
        self.num_rows = 0
        self.num_shown = 0
        self.num_later_drops = 0

    def begin_dataset(self, repeat: float) -> None:
        """Do nothing. A source row is shown once, even if it is repeated."""

    def add(self, outcome: SourceRowOutcome, num_passes: int = 1) -> None:
        """Count the source row, and show its labelled rows or its drop if it is selected."""
        self.tally.count(outcome, num_passes)
        self.lengths.update(outcome.labelled_lengths)
        for position, row in enumerate(outcome.labelled_rows or (None,)):
            self.num_rows += 1
            if self._is_selected(outcome):
                self.num_shown += 1
            elif self._is_later_drop(outcome):
                self.num_later_drops += 1
            else:
                continue
            self._show(PreviewRow(outcome, row, position))

    def _is_selected(self, outcome: SourceRowOutcome) -> bool:
        if self._selection.row is not None:
            return outcome.source_row.row == self._selection.row
        return self._selection.num_rows is None or self.num_shown < self._selection.num_rows

    def _is_later_drop(self, outcome: SourceRowOutcome) -> bool:
        if outcome.drop is None or outcome.drop.reason == SUBSAMPLED:
            return False
        return self.num_later_drops < self._selection.num_later_drops


class _OtherSplit:
    """A receiver of source rows that looks for the selected row in another split."""

    def __init__(self, row: int) -> None:
        self._row = row
        self.has_row = False

    def begin_dataset(self, repeat: float) -> None:
        """Do nothing."""

    def add(self, outcome: SourceRowOutcome, num_passes: int = 1) -> None:
        """Compare the row's number with the selected one."""
        self.has_row |= outcome.source_row.row == self._row


def _make_other_splits(data: DataSection, selection: Selection) -> dict[str, _OtherSplit]:
    """Return receivers for the other splits, or an empty dict if no single row is selected."""
    if selection.row is None:
        return {}
    others = [name for name in list_splits(data) if name != selection.split]
    return {name: _OtherSplit(selection.row) for name in others}


def _refuse_missing_row(selection: Selection, splits_with_row: list[str]) -> None:
    fix = "give another number: in each source, the first row is row 0"
    if splits_with_row:
        fix = f"the row is in another split: add --split {splits_with_row[0]}"
    raise DataError(f"the {selection.split} split has no row {selection.row}", "--row", fix)


def _make_tokenizer_facts(
    tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> TokenizerFacts:
    stops = tokenizer.convert_ids_to_tokens(sorted(stop_token_ids))
    return TokenizerFacts(
        eos=str(tokenizer.eos_token or ""),
        pad=str(tokenizer.pad_token or ""),
        stop_tokens=tuple(str(stop) for stop in stops),
        template_sha256=hash_template(tokenizer),
    )


def _check_has_split(recipe: Recipe, split: str) -> None:
    """Check that the recipe asks for this split.

    Raises: RecipeError if it does not.
    """
    if split not in list_splits(recipe.data):
        raise RecipeError(
            f"the recipe has no {split} split",
            recipe.where(f"data.{split}"),
            f"add data.{split}: {{fraction: 0.05}} or {{datasets: [...]}}",
        )


def find_fix(outcome: SourceRowOutcome, max_length: int) -> str:
    """Return what the user can do so that a dropped row is learned."""
    assert outcome.drop is not None, "the caller checked that the source row is dropped"
    fix = FIXES.get(outcome.drop.reason, "correct the row")
    return fix.format(longest=outcome.longest_tokens, max_length=max_length)


def excerpt_row(row: SourceRow, max_characters: int) -> str:
    """Return the beginning of a source row's values as text; empty if it was not read."""
    if row.drop is not None:
        return ""
    text = json.dumps(row.values, ensure_ascii=False, default=str)
    return text if len(text) <= max_characters else f"{text[:max_characters]} …"
