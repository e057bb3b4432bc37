"""What each process did and held in the first step: kept in the manifest, so that it can be seen.

Two processes that read the same rows train on half the batch that was asked for, and a model that
was to be spread and was not fits all the same, until it does not; the loss looks as it always does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from lora_sft.log import say
from lora_sft.model.partitioning import count_local_bytes
from lora_sft.run_directory import RunDirectory, write_json


class FirstStepRecord(TrainerCallback):
    """Note the rows of the first step after a start, and compare them between the processes."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.rows: list[str] = []
        self.is_open = True

    def note(self, inputs: Mapping[str, Any]) -> None:
        """The rows of one micro-batch, by the hash of their tokens."""
        if self.is_open:
            self.rows += [_hash(row) for row in _list_rows(inputs)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once: write how many rows each process read, and how many of them another read too."""
        if not self.is_open:
            return
        self.is_open = False
        by_process = gather_object([self.rows])
        held = gather_object([count_held_bytes(kwargs["model"], kwargs["optimizer"])])
        readers = Counter(row for rows in by_process for row in set(rows))
        shared = sum(count > 1 for count in readers.values())
        if not state.is_world_process_zero:
            return
        record = {
            "step": state.global_step,
            "rows_by_process": [len(rows) for rows in by_process],
            "rows_read_by_several": shared,
            "bytes_by_process": held,
        }
        manifest = self.run.read_json(self.run.manifest) or {}
        write_json(self.run.manifest, {**manifest, "first_step": record})
        if shared:
            say(
                f"warning: {shared} rows of this step were read by several processes (rows that "
                "are in the data twice, or processes that were given the same share)"
            )


def count_held_bytes(model: torch.nn.Module, optimizer: Any) -> dict[str, int]:
    """Bytes that this process holds between two steps, activations and gradients apart.

    `optimizer`: its states, and the copies of the adapter that a sharded optimizer steps on.
    """
    parameters = list(model.parameters())
    sizes = {"base": 0, "adapter": 0}
    for parameter in parameters:
        sizes["adapter" if parameter.requires_grad else "base"] += count_local_bytes(parameter)
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    known = {_find_storage(tensor) for tensor in parameters}
    stepped = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    states = [each for state in optimizer.state.values() for each in state.values()]
    tensors = [tensor for tensor in stepped if _find_storage(tensor) not in known]
    tensors += [tensor for tensor in states if isinstance(tensor, torch.Tensor)]
    return {**sizes, "optimizer": sum(each.numel() * each.element_size() for each in tensors)}


def _find_storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _list_rows(inputs: Mapping[str, Any]) -> list[list[int]]:
    """The rows of a batch, without padding."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None or mask.shape != ids.shape:
        mask = torch.ones_like(ids)
    return [row[kept.bool()].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]


def _hash(row: list[int]) -> str:
    return hashlib.blake2b(repr(row).encode(), digest_size=8).hexdigest()
