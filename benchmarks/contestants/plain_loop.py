"""The contestant "plain PEFT loop": a training loop as tutorials write it, without a trainer.

It uses a bfloat16 base, a float32 adapter (PEFT's default), padded micro-batches, the model's own
loss over all logits, fused AdamW and activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.contestants.job import LORA_ALPHA, LORA_RANK, NF4_FIELDS, Job, Observer, Run
from benchmarks.documents import IGNORED_LABEL
from benchmarks.shapes import PAD_ID

LEARNING_RATE = 2e-4


def build(job: Job) -> Run:
    """Build the run.

    The job's options are `rows` (documents per micro-batch, default 4), `accumulation`
    (micro-batches per step, default 4), `dtype` (default bfloat16) and `activation_checkpointing`
    (default True).
    """
    return _PlainRun(job)


class _PlainRun:
    """The model, the optimizer and the batches. It trains each document once, in order."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows = int(job.options.get("rows", 4))
        self.accumulation = int(job.options.get("accumulation", 4))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = _load_model(job, self.device)

    def train(self, observers: Sequence[Observer]) -> float | None:
        """Train to the end. Return the loss of step 1."""
        trained = [each for each in self.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
        batches = self._make_batches()
        first_loss = None
        self.model.train()
        for step in range(1, self.job.steps + 1):
            for observer in observers:
                observer.start_step(step)
            loss = self._take_step([next(batches) for _ in range(self.accumulation)])
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            first_loss = loss.item() if step == 1 else first_loss
            for observer in observers:
                observer.end_step(step)
        return first_loss

    def _take_step(self, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Run all micro-batches forward and backward. Return the mean loss per learned token."""
        learned = sum((batch["labels"][:, 1:] != IGNORED_LABEL).sum() for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            on_device = {name: tensor.to(self.device) for name, tensor in batch.items()}
            loss = self.model(**on_device, num_items_in_batch=learned).loss
            loss.backward()
            total += loss.detach()
        return total

    def first_batch(self) -> dict[str, Any]:
        """Return the first micro-batch."""
        return dict(next(self._make_batches()))

    def _make_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        rows = self.job.documents.to_labelled_rows()
        for start in range(0, len(rows) - self.rows + 1, self.rows):
            chosen = rows[start : start + self.rows]
            yield {
                "input_ids": _pad([row["input_ids"] for row in chosen], PAD_ID),
                "labels": _pad([row["labels"] for row in chosen], IGNORED_LABEL),
                "attention_mask": _pad([[1] * len(row["labels"]) for row in chosen], 0),
            }


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def _load_model(job: Job, device: str) -> Any:
    dtype = getattr(torch, job.options.get("dtype", "bfloat16"))
    checkpointing = bool(job.options.get("activation_checkpointing", True))
    settings: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if job.method == "qlora":
        settings["quantization_config"] = BitsAndBytesConfig(
            **NF4_FIELDS, bnb_4bit_compute_dtype=dtype
        )
    model: Any = AutoModelForCausalLM.from_pretrained(job.model_folder, **settings)
    model.config.use_cache = False
    if job.method == "qlora":
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    elif checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora)
