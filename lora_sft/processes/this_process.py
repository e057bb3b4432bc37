"""Read this process's rank and the world size from the environment.

`torchrun`, `accelerate launch` and `deepspeed` all set the same variables. This file does not open
the process group: transformers does that when `TrainingArguments` are built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lora_sft.errors import RecipeError
from lora_sft.processes.world import read_number


@dataclass(frozen=True)
class Processes:
    """The rank of this process, and the world size of the run."""

    process_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run directory and the log."""
        return self.process_rank == 0

    @classmethod
    def from_environment(cls) -> Processes:
        """Read RANK and WORLD_SIZE; without them this is a run of one process.

        Raises: RecipeError if one of them is not an integer.
        """
        return cls(
            process_rank=read_number(os.environ, "RANK", 0),
            world_size=read_number(os.environ, "WORLD_SIZE", 1),
        )


def check_devices(environment: Mapping[str, str], num_gpus: int) -> None:
    """Check that every process on this machine can use a GPU of its own.

    Some launchers show each process only one GPU, so `num_gpus` 1 is accepted. 0 means that the
    run uses the CPU. NCCL would refuse a shared GPU only much later.

    Args:
        environment: Holds LOCAL_WORLD_SIZE, the number of processes on this machine.
        num_gpus: How many GPUs this process sees.

    Raises: RecipeError if there are more processes than GPUs.
    """
    local = read_number(environment, "LOCAL_WORLD_SIZE", 1)
    if local > num_gpus > 1:
        raise RecipeError(
            f"{local} processes were started on this machine, but it has {num_gpus} GPUs",
            "LOCAL_WORLD_SIZE",
            f"start one process per GPU: lora-sft launch RECIPE --gpus {num_gpus}",
        )


def leave_process_group() -> None:
    """Wait until every process calls this, then close the process group.

    A process that ends with an open group may abort (gloo: `terminate called without an active
    exception`). The launcher would then kill rank 0, which may still be merging. No collective may
    follow this call.
    """
    import torch.distributed  # late, because other users of this file do not need torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
