"""The account of one split: how many source rows were kept or dropped, and why.

An account whose sums do not add up cannot be made.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome

SOURCE_COUNTS = ("read", "kept", "rows_out", "tokens", "target_tokens")


@dataclass(frozen=True)
class Account:
    """The counts of one split.

    Fields that count source rows count each row once, even if it is repeated. Fields that count
    labelled rows or tokens include repeats.

    Attributes:
        read: Source rows.
        kept: Source rows with at least one labelled row in the split.
        rows_out: Labelled rows.
        dropped: Source rows without a labelled row, by reason.
        expanded: Kept source rows that became several labelled rows, such as one per turn.
        truncated: Kept source rows that were cut.
        shortened: Kept source rows of a task. An input of each was cut.
        target_tokens: Learned tokens of the labelled rows.
        tokens: All tokens of the labelled rows.
        partly_overlong: Kept source rows that lost some labelled rows, because these were too long.
        expansion_tokens: The cost of expanding: for each kept source row, the tokens of all its
            labelled rows except the longest one, before the length policy.
        longest_tokens: The tokens of the longest labelled row, before the length policy.
        built: Labelled rows by the way they were built (see `LabelledRow`).
        examples: The place of the first source row of each drop reason.
        sources: The counts of `SOURCE_COUNTS` for each source. A source has the name that the
            recipe or its folder gives it.
    """

    read: int
    kept: int
    rows_out: int
    dropped: Mapping[str, int]
    expanded: int
    truncated: int
    target_tokens: int
    tokens: int
    shortened: int = 0
    partly_overlong: int = 0
    expansion_tokens: int = 0
    longest_tokens: int = 0
    built: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lost = sum(self.dropped.values())
        assert self.read == self.kept + lost, f"{self.read} read, {self.kept} kept, {lost} dropped"
        assert self.rows_out == sum(self.built.values()), "`built` counts each row out once"
        for name in SOURCE_COUNTS if self.sources else ():
            found = sum(source[name] for source in self.sources.values())
            assert found == getattr(self, name), f"{found} {name} in all sources together"

    def as_dict(self) -> dict[str, Any]:
        """Return the account as a JSON object."""
        plain = {**vars(self)}
        for name in ("dropped", "built", "examples"):
            plain[name] = dict(plain[name])
        plain["sources"] = {source: dict(counts) for source, counts in self.sources.items()}
        return plain


class AccountTally:
    """The counts of a split that is still being built."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._built: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._longest_tokens = 0

    def count(self, outcome: SourceRowOutcome, num_passes: int) -> None:
        """Count one source row, whose labelled rows are learned `num_passes` times per epoch."""
        self._longest_tokens = max(self._longest_tokens, outcome.longest_tokens)
        source = self._sources[outcome.source_row.source]
        source["read"] += 1
        if outcome.drop is not None:
            self._count_dropped(outcome)
            return
        source["kept"] += 1
        self._counts["kept"] += 1
        self._counts["expanded"] += outcome.is_expanded
        self._counts["truncated"] += outcome.is_truncated
        self._counts["shortened"] += outcome.is_shortened
        self._counts["partly_overlong"] += len(outcome.labelled_rows) < outcome.num_labelled
        lengths = [len(row.input_ids) for row in outcome.labelled_rows]
        added_by_expanding = sum(outcome.labelled_lengths) - outcome.longest_tokens
        self._counts["expansion_tokens"] += num_passes * added_by_expanding
        for row in outcome.labelled_rows:
            self._built[row.built] += num_passes
        added = {
            "rows_out": num_passes * len(lengths),
            "tokens": num_passes * sum(lengths),
            "target_tokens": num_passes
            * sum(row.num_target_tokens for row in outcome.labelled_rows),
        }
        for name, count in added.items():
            self._counts[name] += count
            source[name] += count

    def _count_dropped(self, outcome: SourceRowOutcome) -> None:
        drop, where = outcome.drop, outcome.source_row.where
        assert drop is not None, "the caller checked that the source row is dropped"
        self._dropped[drop.reason] += 1
        if drop.reason not in self._examples:
            self._examples[drop.reason] = f"{where} ({drop.detail})" if drop.detail else where

    def finish(self) -> Account:
        """Return the account, after checking its sums."""
        counts = self._counts
        return Account(
            read=counts["kept"] + sum(self._dropped.values()),
            kept=counts["kept"],
            rows_out=counts["rows_out"],
            dropped=dict(self._dropped),
            expanded=counts["expanded"],
            truncated=counts["truncated"],
            shortened=counts["shortened"],
            target_tokens=counts["target_tokens"],
            tokens=counts["tokens"],
            partly_overlong=counts["partly_overlong"],
            expansion_tokens=counts["expansion_tokens"],
            longest_tokens=self._longest_tokens,
            built={name: count for name, count in self._built.items() if count},
            examples=dict(self._examples),
            sources={
                source: {name: found[name] for name in SOURCE_COUNTS}
                for source, found in self._sources.items()
            },
        )
