"""The command lines that start a run's processes. Starting them is the launchers' own work."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class World:
    """How many machines, and how many processes (one a GPU) on each."""

    nodes: int
    gpus: int

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus


def make_torchrun_command(
    world: World, train: Sequence[str], rendezvous: str | None = None, address: str | None = None
) -> list[str]:
    """torchrun for this machine's share of the processes.

    `train`: what follows `lora-sft`. `rendezvous`: HOST:PORT of one of the machines, the same on
    all of them; on a single machine torchrun finds a free port. `address`: of this machine, where
    the others do not find it by its host name.
    """
    meeting = ["--standalone"]
    if rendezvous is not None:
        name = hashlib.sha256(" ".join([rendezvous, *train]).encode()).hexdigest()[:12]
        meeting = [f"--nnodes={world.nodes}", "--rdzv-backend=c10d"]
        meeting += [f"--rdzv-endpoint={rendezvous}", f"--rdzv-id={name}"]
        if address is not None:
            is_host = rendezvous.rpartition(":")[0] == address
            meeting += [f"--local-addr={address}", f"--rdzv-conf=is_host={int(is_host)}"]
    head = [sys.executable, "-m", "torch.distributed.run", *meeting]
    return [*head, f"--nproc-per-node={world.gpus}", "-m", "lora_sft", *train]


def make_deepspeed_command(world: World, train: Sequence[str], hostfile: Path) -> list[str]:
    """DeepSpeed's launcher, which reaches the machines of a hostfile over ssh."""
    head = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={hostfile}"]
    size = [f"--num_nodes={world.nodes}", f"--num_gpus={world.gpus}"]
    return [*head, *size, "--module", "lora_sft", *train]
