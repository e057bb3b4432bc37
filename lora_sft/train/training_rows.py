"""The rows that a run trains on, and the decision about packing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from lora_sft.model.isolation import Isolation
from lora_sft.plan.batch import BatchPlan
from lora_sft.train.checkpoints.run_identity import PackedRows


@dataclass(frozen=True)
class TrainingRows:
    """The rows to train on, and the decision about packing.

    Attributes:
        dataset: The rows, packed or not.
        num_documents: The number of labelled rows.
        tokens: The tokens of all rows.
        learned_tokens: The learned tokens of all rows.
        is_packed: Whether the rows are packed.
        reason: Why they are not packed.
        utilisation: The share of `max_length` that the packed rows fill.
        keeps_rows_apart: Whether each packed row stays a row of its own in a micro-batch. Otherwise
            all packed rows of a micro-batch are joined into one sequence.
        isolation: The measurement of how well the model keeps documents apart.
    """

    dataset: Dataset
    num_documents: int
    tokens: int
    learned_tokens: int
    is_packed: bool = False
    reason: str = ""
    utilisation: float | None = None
    keeps_rows_apart: bool = False
    isolation: Isolation | None = None

    @property
    def identity(self) -> PackedRows:
        """The part that must stay equal if the run is resumed."""
        return PackedRows(self.is_packed, len(self.dataset), self.reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain data, for the manifest."""
        decided: dict[str, Any] = {
            "on": self.is_packed,
            "reason": self.reason,
            "documents": self.num_documents,
            "rows": len(self.dataset),
            "utilisation": self.utilisation,
        }
        if self.isolation is not None and not self.isolation.refusal:
            decided["leak"] = self.isolation.leak
            decided["rounding"] = self.isolation.rounding
            decided["loss_change"] = self.isolation.loss_change
        return decided

    def count_per_step(self, batch: BatchPlan) -> dict[str, int]:
        """Return the tokens and the learned tokens of an average optimizer step."""
        share = min(1.0, batch.global_batch_size / len(self.dataset))
        return {
            "tokens_a_step": round(self.tokens * share),
            "learned_tokens_a_step": round(self.learned_tokens * share),
        }

    def describe(self, batch: BatchPlan) -> str:
        """Return the decision as one line for the log."""
        tokens, learned = self.count_per_step(batch).values()
        step = f"about {tokens:,} tokens per step, {learned:,} of them learned"
        if not self.is_packed:
            return f"packing: off, {self.reason}; {step}"
        return (
            f"packing: {self.num_documents:,} rows in {len(self.dataset):,} packed rows, "
            f"{self.utilisation:.1%} full; {step}"
        )
