"""The command lines that start a run's processes. Starting them is the launchers' own work."""

from __future__ import annotations

import hashlib
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_sft.errors import RecipeError


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

    Raises: RecipeError where `rendezvous` has no port.
    """
    meeting = ["--standalone"]
    if rendezvous is not None:
        host = _read_host(rendezvous)
        name = hashlib.sha256(" ".join([rendezvous, *train]).encode()).hexdigest()[:12]
        meeting = [f"--nnodes={world.nodes}", "--rdzv-backend=c10d"]
        meeting += [f"--rdzv-endpoint={rendezvous}", f"--rdzv-id={name}"]
        if address is not None:
            meeting += [f"--local-addr={address}"]
            if _find_addresses(host) & _find_addresses(address):
                meeting += ["--rdzv-conf=is_host=1"]
    head = [sys.executable, "-m", "torch.distributed.run", *meeting]
    return [*head, f"--nproc-per-node={world.gpus}", "-m", "lora_sft", *train]


def _read_host(rendezvous: str) -> str:
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RecipeError(
            f"{rendezvous!r} is not HOST:PORT",
            "lora-sft launch --rendezvous",
            "give a port that is free on that machine: node1:29500, or [fd00::1]:29500",
        )
    return host.removeprefix("[").removesuffix("]")


def _find_addresses(host: str) -> set[str]:
    """Its name and whatever it resolves to.

    torch takes a given `is_host` at its word and otherwise compares with this machine's own name.
    So it is given only where it is certain: a difference of names says nothing.
    """
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return {host}
    return {host, *(str(entry[4][0]) for entry in found)}


def make_deepspeed_command(
    world: World, train: Sequence[str], hostfile: Path, variables: Mapping[str, str]
) -> list[str]:
    """DeepSpeed's launcher, which reaches the first machines of a hostfile over ssh.

    `--force_multi`: else it takes a hostfile of one machine, or `--num_nodes=1`, for this machine.
    `variables`: for the processes; of the environment it takes only the names that it knows
    (PYTHON*, NCCL* and the like) to other machines, so `env` sets them there.
    """
    head = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={hostfile}"]
    size = [f"--num_nodes={world.nodes}", f"--num_gpus={world.gpus}"]
    given = [f"{name}={value}" for name, value in variables.items()]
    words = [*given, sys.executable, "-u", "-m", "lora_sft", *train]
    quoted = [_quote_for_pdsh(word) for word in words]
    return [*head, *size, "--force_multi", "--no_python", "--no_local_rank", "env", *quoted]


def _quote_for_pdsh(word: str) -> str:
    """A word as the remote shell shall read it: pdsh joins them with spaces.

    DeepSpeed (`PDSHRunner.parse_user_args`) itself puts words with a space in double quotes and
    escapes those that they hold; what else means something inside is left to us.
    """
    if " " in word:
        return re.sub(r"([\\$`])", r"\\\1", word)
    return shlex.quote(word)
