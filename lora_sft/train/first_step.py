"""Record in the manifest which rows and how many bytes each process had in the first step.

Two faults of a distributed run do not show in the loss. If two processes read the same rows, they
train on half of the batch. If a model is not sharded as the recipe asks, it only needs more memory.
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
from lora_sft.run_directory import RunDirectory


class FirstStepRecord(TrainerCallback):
    """A callback that compares the rows of all processes in the first step after a start."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.rows: list[str] = []
        self.is_open = True

    def note_micro_batch(self, inputs: Mapping[str, Any]) -> None:
        """Note the hash of the tokens of each row of one micro-batch."""
        if self.is_open:
            self.rows += [_hash(row) for row in _list_rows(inputs)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write how many rows each process read, and how many rows several processes read."""
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
        manifest = self.run.read_json(self.run.manifest)
        if manifest is not None:  # without it the file would not be the mark of a run
            self.run.write_manifest({**manifest, "first_step": record})
        if shared:
            say(
                f"warning: several processes read the same {shared} rows in this step: the data "
                "holds equal rows, or the processes read the same share of the data"
            )


def count_held_bytes(model: torch.nn.Module, optimizer: Any) -> dict[str, int]:
    """Return the bytes of base, adapter and optimizer on this process, between two steps.

    Activations and gradients are not counted. The bytes of the optimizer are its states, and the
    copies of the adapter that a sharded optimizer updates.
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
    """Return the token ids of each row of a batch, without padding."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if mask is None or mask.shape != ids.shape:
        mask = torch.ones_like(ids)
    return [row[kept.bool()].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]


def _hash(row: list[int]) -> str:
    return hashlib.blake2b(repr(row).encode(), digest_size=8).hexdigest()
