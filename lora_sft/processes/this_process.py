"""Which process of the run this one is, read from what any launcher sets.

`python`, `torchrun`, `accelerate launch` and `deepspeed` all announce themselves through the
same environment variables; nothing here starts a process group (transformers does, when its
arguments are built).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lora_sft.errors import RecipeError
from lora_sft.processes.world import read_number


@dataclass(frozen=True)
class Processes:
    """This process's place in the run: global rank and number of processes."""

    process_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and speaks to the user."""
        return self.process_rank == 0

    @classmethod
    def from_environment(cls) -> Processes:
        """Read RANK and WORLD_SIZE; alone where no launcher set them.

        Raises: RecipeError where one of them is no number.
        """
        return cls(
            process_rank=read_number(os.environ, "RANK", 0),
            world_size=read_number(os.environ, "WORLD_SIZE", 1),
        )


def check_devices(environment: Mapping[str, str], num_gpus: int) -> None:
    """Every process of a machine needs a GPU of its own, unless each is shown one.

    `num_gpus`: how many this process sees.

    Raises: RecipeError where several processes would share one, which NCCL refuses much later.
    """
    local = read_number(environment, "LOCAL_WORLD_SIZE", 1)
    if local > num_gpus > 1:
        raise RecipeError(
            f"{local} processes on this machine, and {num_gpus} GPUs",
            "LOCAL_WORLD_SIZE",
            f"start {num_gpus} processes on it: lora-sft launch RECIPE --gpus {num_gpus}",
        )


def leave_process_group() -> None:
    """Wait until every process is here, then close the group.

    A process that ends while its group is open may abort at the interpreter's end (gloo:
    `terminate called without an active exception`), and the launcher then kills the main one,
    which is still writing the adapter. Nothing collective may follow.
    """
    import torch.distributed  # who only watches the processes needs no torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
