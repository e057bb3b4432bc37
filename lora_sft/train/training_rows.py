"""The rows that a run trains on, and what was decided about packing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from lora_sft.model.isolation import Isolation
from lora_sft.plan.batch import BatchPlan
from lora_sft.train.checkpoints.run_identity import PackedRows


@dataclass(frozen=True)
class TrainingRows:
    """The rows to train on, and what was decided about them.

    `reason` says why they are not packed. `keeps_rows_apart`: a micro-batch has a line a row,
    instead of all its rows in one line.
    """

    dataset: Dataset
    num_documents: int
    tokens: int
    learned_tokens: int
    is_on: bool = False
    reason: str = ""
    utilisation: float | None = None
    keeps_rows_apart: bool = False
    isolation: Isolation | None = None

    @property
    def identity(self) -> PackedRows:
        """What must be equal for a run to go on: packed or not, and into how many rows."""
        return PackedRows(self.is_on, len(self.dataset), self.reason)

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain data, for the manifest."""
        decided: dict[str, Any] = {
            "on": self.is_on,
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

    def count_a_step(self, batch: BatchPlan) -> dict[str, int]:
        """Tokens of the mean optimizer step, and how many of them are learned."""
        share = min(1.0, batch.global_batch_size / len(self.dataset))
        return {
            "tokens_a_step": round(self.tokens * share),
            "learned_tokens_a_step": round(self.learned_tokens * share),
        }

    def describe(self, batch: BatchPlan) -> str:
        """The decision as one line for a person."""
        tokens, learned = self.count_a_step(batch).values()
        step = f"about {tokens:,} tokens a step, {learned:,} of them learned"
        if not self.is_on:
            return f"packing: off, {self.reason}; {step}"
        return (
            f"packing: {self.num_documents:,} rows in {len(self.dataset):,} packed ones, "
            f"{self.utilisation:.1%} full; {step}"
        )
