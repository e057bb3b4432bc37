"""The interface of a contestant: the job that it gets, and the run that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from benchmarks.documents import Documents

LORA_RANK = 16
LORA_ALPHA = 32

# The storage format of QLoRA (Dettmers et al. 2023): NF4 codes with double quantisation.
NF4_FIELDS = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


@dataclass(frozen=True)
class Job:
    """One training job, the same for all contestants.

    Attributes:
        method: "lora" or "qlora".
        max_length: The length of the longest document, in tokens.
        steps: The number of optimizer steps.
        tokens_per_step: The step size that a tuned contestant should reach.
        options: Settings that only this contestant knows.
    """

    model_folder: Path
    method: str
    documents: Documents
    max_length: int
    steps: int
    tokens_per_step: int
    work_folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """An object that a run calls before and after each optimizer step. Steps count from 1."""

    def start_step(self, step: int) -> None:
        """Handle the start of a step, before its first micro-batch."""

    def end_step(self, step: int) -> None:
        """Handle the end of a step, after the optimizer's update."""


class Run(Protocol):
    """A training run that was built but has not started."""

    model: Any

    def train(self, observers: Sequence[Observer]) -> float | None:
        """Train to the end. Return the loss of step 1, as the mean over its learned tokens."""

    def first_batch(self) -> dict[str, Any]:
        """Return one micro-batch in the form that the model receives in training."""


class ObserverCallback(TrainerCallback):
    """A callback that calls the observers at each step of a transformers Trainer."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call `start_step` of each observer. The Trainer calls this before each step."""
        for observer in self.observers:
            observer.start_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call `end_step` of each observer. The Trainer calls this after each step."""
        for observer in self.observers:
            observer.end_step(state.global_step)


class TrainerRun:
    """A run of a contestant that trains with a transformers Trainer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.model = trainer.model

    def train(self, observers: Sequence[Observer]) -> float | None:
        """Train to the end. Return the loss that the trainer logged for step 1."""
        self.trainer.add_callback(ObserverCallback(observers))
        self.trainer.train()
        first = [log["loss"] for log in self.trainer.state.log_history if "loss" in log]
        return float(first[0]) if first else None

    def first_batch(self) -> dict[str, Any]:
        """Return the first micro-batch of the trainer's data loader.

        If the rows are packed, return the first micro-batch whose row holds two documents.
        """
        batches = iter(self.trainer.get_train_dataloader())
        first = next(batches)
        if "position_ids" not in first:
            return dict(first)
        several = (batch for batch in batches if (batch["position_ids"][0] == 0).sum() > 1)
        return dict(first if (first["position_ids"][0] == 0).sum() > 1 else next(several, first))
