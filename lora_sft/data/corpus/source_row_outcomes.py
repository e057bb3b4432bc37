"""The outcome of one source row: its labelled rows, or the reason why it was dropped."""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.data.drops import Drop
from lora_sft.data.labelled_row import LabelledRow
from lora_sft.data.rows.row_sources import SourceRow


@dataclass(frozen=True)
class SourceRowOutcome:
    """One source row, with either its labelled rows or its drop.

    Attributes:
        row_hash: Chooses the split and the number of passes (see `splits`).
        example_hash: Equal for equal examples; None if the recipe does not compare examples.
        labelled_lengths: The tokens of each labelled row before the length policy.
        is_truncated: Whether the length policy cut a labelled row.
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
        """Whether the source row became several labelled rows, even if only some of them fit."""
        return max(self.num_labelled, len(self.labelled_rows)) > 1

    @property
    def longest_tokens(self) -> int:
        return max(self.labelled_lengths, default=0)
