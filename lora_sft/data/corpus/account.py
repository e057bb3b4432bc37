"""The account of one split: what became of every source row. Its sums add up, or it is not made."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_sft.data.corpus.source_row_outcomes import SourceRowOutcome

if TYPE_CHECKING:
    pass


SOURCE_COUNTS = ("read", "kept", "rows_out", "tokens", "target_tokens")


@dataclass(frozen=True)
class Account:
    """What became of a split's source rows.

    `read`, `kept`, `dropped`, `expanded` (into several labelled rows), `truncated` and
    `partly_overlong` (expanded, and some of the labelled rows too long) count source rows, each
    once whatever its repeat. `rows_out`, `tokens`, `target_tokens` and `built` describe the
    labelled rows of the finished split, repeats included. `expansion_tokens` are what expanding
    costs: the tokens of a kept source row's labelled rows beyond those of its longest, as they are
    before the length policy, repeats included. `longest_tokens` is the longest labelled row seen,
    before the length policy. `examples` has the first source row of each drop reason. `sources` has
    the same counts (`SOURCE_COUNTS`) for each source, as the recipe writes it or as its folder
    lists it.
    """

    read: int
    kept: int
    rows_out: int
    dropped: Mapping[str, int]
    expanded: int
    truncated: int
    target_tokens: int
    tokens: int
    partly_overlong: int = 0
    expansion_tokens: int = 0
    longest_tokens: int = 0
    built: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lost = sum(self.dropped.values())
        assert self.read == self.kept + lost, f"{self.read} read, {self.kept} kept, {lost} dropped"
        assert self.rows_out == sum(self.built.values()), "every row out was built in one way"
        for name in SOURCE_COUNTS if self.sources else ():
            found = sum(source[name] for source in self.sources.values())
            assert found == getattr(self, name), f"{found} {name} in all sources together"

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON shows it."""
        plain = {**vars(self)}
        for name in ("dropped", "built", "examples"):
            plain[name] = dict(plain[name])
        plain["sources"] = {source: dict(counts) for source, counts in self.sources.items()}
        return plain


class AccountTally:
    """Counts while a split is being built."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._built: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._longest_tokens = 0

    def count(self, outcome: SourceRowOutcome, num_passes: int) -> None:
        """One source row, whose labelled rows are learned `num_passes` times an epoch."""
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
        assert drop is not None, "only a drop is counted as one"
        self._dropped[drop.reason] += 1
        if drop.reason not in self._examples:
            self._examples[drop.reason] = f"{where} ({drop.detail})" if drop.detail else where

    def finish(self) -> Account:
        """The account, with its sums checked."""
        counts = self._counts
        return Account(
            read=counts["kept"] + sum(self._dropped.values()),
            kept=counts["kept"],
            rows_out=counts["rows_out"],
            dropped=dict(self._dropped),
            expanded=counts["expanded"],
            truncated=counts["truncated"],
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
