"""What a contestant is asked to train, and what it must let the meters see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from benchmarks.documents import Documents

LORA_RANK = 16
LORA_ALPHA = 32

# QLoRA's storage (Dettmers et al. 2023): NF4 codes, double quantisation, bfloat16 arithmetic.
NF4_FIELDS = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


@dataclass(frozen=True)
class Job:
    """Train `steps` optimizer steps of `method` ("lora" or "qlora") on the documents.

    `max_length` is the longest document; `tokens_per_step` what a tuned contestant aims at.
    `options` are the contestant's own.
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
    """Told of every optimizer step; steps count from 1."""

    def start_step(self, step: int) -> None:
        """Before the first micro-batch of a step."""

    def end_step(self, step: int) -> None:
        """After the optimizer has stepped."""


class Run(Protocol):
    """A training run that is built and not yet started."""

    model: Any

    def train(self, observers: Sequence[Observer]) -> float | None:
        """Train to the end; the loss of step 1 (mean over its learned tokens)."""

    def first_batch(self) -> dict[str, Any]:
        """A micro-batch as the model would be given it."""


class ObserverCallback(TrainerCallback):
    """Tells observers of the steps of a transformers Trainer."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's name for the start of an optimizer step."""
        for observer in self.observers:
            observer.start_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's name for the end of an optimizer step."""
        for observer in self.observers:
            observer.end_step(state.global_step)


class TrainerRun:
    """A run that a transformers Trainer drives."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.model = trainer.model

    def train(self, observers: Sequence[Observer]) -> float | None:
        """Train to the end; the loss that the trainer logged for step 1."""
        self.trainer.add_callback(ObserverCallback(observers))
        self.trainer.train()
        first = [log["loss"] for log in self.trainer.state.log_history if "loss" in log]
        return float(first[0]) if first else None

    def first_batch(self) -> dict[str, Any]:
        """The first micro-batch of the trainer's own loader; of packed rows, the first with two
        documents in a row."""
        batches = iter(self.trainer.get_train_dataloader())
        first = next(batches)
        if "position_ids" not in first:
            return dict(first)
        several = (batch for batch in batches if (batch["position_ids"][0] == 0).sum() > 1)
        return dict(first if (first["position_ids"][0] == 0).sum() > 1 else next(several, first))
