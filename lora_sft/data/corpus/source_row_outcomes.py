"""What became of one source row: its labelled rows, or the reason why it was dropped."""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.data.drops import Drop
from lora_sft.data.labelled_row import LabelledRow
from lora_sft.data.rows.row_sources import SourceRow


@dataclass(frozen=True)
class SourceRowOutcome:
    """One source row and what became of it: either `labelled_rows` or `drop` says so.

    `labelled_lengths` are the tokens of each of its labelled rows before the length policy.
    `example_hash` tells source rows that hold the same example, where the recipe wants them told.
    """

    source_row: SourceRow
    row_hash: bytes
    example_hash: bytes | None = None
    labelled_rows: tuple[LabelledRow, ...] = ()
    drop: Drop | None = None
    labelled_lengths: tuple[int, ...] = ()
    is_truncated: bool = False

    @property
    def num_labelled(self) -> int:
        return len(self.labelled_lengths)

    @property
    def is_expanded(self) -> bool:
        """Whether the source row became several labelled rows (also where only some fit)."""
        return max(self.num_labelled, len(self.labelled_rows)) > 1

    @property
    def longest_tokens(self) -> int:
        return max(self.labelled_lengths, default=0)
