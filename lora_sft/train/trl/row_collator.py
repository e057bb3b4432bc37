"""Batches of padded or packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lora_sft.data.labelled_row import IGNORED_LABEL


@dataclass
class RowCollator(DataCollatorForLanguageModeling):
    """Batches of plain rows (padded, with a mask) or of packed rows (`seq_lengths`).

    A packed row goes without a mask and with positions that start anew at each document:
    transformers finds the borders in them (5.23 `masking_utils.find_packed_sequence_indices`), but
    only where there is no mask, even of ones. The first token of a document is never learned, for
    it would be predicted from the last of another.

    All packed rows of a batch lie in one line, with the borders that flash attention reads, or,
    where `keeps_rows_apart`, in a line each, filled up with documents of one token.
    """

    keeps_rows_apart: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One micro-batch."""
        is_packed = "seq_lengths" in examples[0]
        self.padding_free = is_packed and not self.keeps_rows_apart
        self.return_position_ids = is_packed
        batch: dict[str, Any] = super().torch_call(examples)
        if is_packed and self.keeps_rows_apart:
            del batch["attention_mask"]
            batch["labels"][batch["position_ids"] == 0] = IGNORED_LABEL
        return batch


def make_collator(
    tokenizer: PreTrainedTokenizerBase, arguments: Any, *, keeps_rows_apart: bool
) -> RowCollator:
    """The collator of a run's rows."""
    return RowCollator(
        pad_token_id=tokenizer.pad_token_id,
        pad_to_multiple_of=arguments.pad_to_multiple_of,
        keeps_rows_apart=keeps_rows_apart,
    )
