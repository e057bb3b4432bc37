"""What became of one source row: its labelled rows, or the reason why it was dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_sft.data.drops import Drop
from lora_sft.data.rows.row_sources import SourceRow
from lora_sft.data.supervised_row import SupervisedRow

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RowOutcome:
    """One source row and what became of it: either `rows` or `drop` says so.

    `supervised_lengths` are the tokens of each of its rows before the length policy.
    `example_hash` tells rows that hold the same example, where the recipe wants them told.
    """

    source_row: SourceRow
    row_hash: bytes
    example_hash: bytes | None = None
    rows: tuple[SupervisedRow, ...] = ()
    drop: Drop | None = None
    supervised_lengths: tuple[int, ...] = ()
    is_truncated: bool = False

    @property
    def num_supervised(self) -> int:
        return len(self.supervised_lengths)

    @property
    def is_expanded(self) -> bool:
        """Whether the source row became several rows (also where only some of them fit)."""
        return max(self.num_supervised, len(self.rows)) > 1

    @property
    def longest_tokens(self) -> int:
        return max(self.supervised_lengths, default=0)
