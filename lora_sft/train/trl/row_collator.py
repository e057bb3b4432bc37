"""Make batches of padded or packed rows."""

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
    """A collator for unpacked rows (padded, with a mask) and packed rows (with `seq_lengths`).

    A packed row has no mask. Its position ids start again at 0 in each document, so transformers
    finds the borders of documents (5.23 `masking_utils.find_packed_sequence_indices`). With a mask,
    even one of ones, it would not search them. The first token of a document is never learned,
    because it would be predicted from the last token of another document.

    Attributes:
        keeps_rows_apart: Whether each packed row is a row of the batch, padded with documents of
            one token. Otherwise all packed rows are joined into one sequence, with the borders that
            flash attention reads.
    """

    keeps_rows_apart: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one micro-batch."""
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
    """Return the collator for the rows of a run."""
    return RowCollator(
        pad_token_id=tokenizer.pad_token_id,
        pad_to_multiple_of=arguments.pad_to_multiple_of,
        keeps_rows_apart=keeps_rows_apart,
    )
