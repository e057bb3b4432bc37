"""Divide a global batch into micro-batches, accumulation steps and processes.

The recipe sets `global_batch_size`, the number of sequences per optimizer step, because the result
of training depends on it. The best division depends on the machine. So the number of accumulation
steps follows from the world size. A global batch that cannot be divided is refused with the nearest
valid sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_sft.errors import RecipeError
from lora_sft.recipe import Recipe


@dataclass(frozen=True)
class BatchPlan:
    """The division of a global batch.

    `global_batch_size` = `micro_batch_size` x `accumulation_steps` x `world_size`, in sequences.
    """

    micro_batch_size: int
    accumulation_steps: int
    world_size: int

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.accumulation_steps * self.world_size


def make_batch_plan(recipe: Recipe, world_size: int) -> BatchPlan:
    """Divide the recipe's global batch among `world_size` processes.

    Raises: RecipeError if the global batch cannot be divided, or if the recipe's numbers contradict
    each other.
    """
    train: Mapping[str, Any] = recipe.train
    micro = train["per_device_train_batch_size"]
    accumulation = train.get("gradient_accumulation_steps")
    wanted = train.get("global_batch_size")
    if wanted is None:
        return BatchPlan(micro, accumulation or 1, world_size)
    rows_per_pass = micro * world_size
    if wanted % rows_per_pass:
        _refuse_indivisible(recipe, wanted, micro, world_size)
    steps = wanted // rows_per_pass
    if accumulation is not None and accumulation != steps:
        raise RecipeError(
            f"global_batch_size {wanted} needs {steps} accumulation steps of {micro} rows on "
            f"{world_size} processes, but gradient_accumulation_steps is {accumulation}",
            recipe.where("train.gradient_accumulation_steps"),
            "delete train.gradient_accumulation_steps: it follows from global_batch_size",
        )
    return BatchPlan(micro, steps, world_size)


def _refuse_indivisible(recipe: Recipe, wanted: int, micro: int, world_size: int) -> None:
    rows_per_pass = micro * world_size
    below = wanted // rows_per_pass * rows_per_pass
    nearest = [size for size in (below, below + rows_per_pass) if size > 0]
    raise RecipeError(
        f"global_batch_size {wanted} is not a multiple of {rows_per_pass} "
        f"({micro} rows per device x {world_size} processes)",
        recipe.where("train.global_batch_size"),
        f"write train.global_batch_size: {' or '.join(str(size) for size in nearest)}",
    )
