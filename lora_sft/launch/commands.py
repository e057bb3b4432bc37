"""Make the command lines of torchrun and of DeepSpeed's launcher."""

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
    """The machines of a run, and the processes on each (one per GPU)."""

    nodes: int
    gpus: int

    @property
    def processes(self) -> int:
        return self.nodes * self.gpus


def make_torchrun_command(
    world: World, train: Sequence[str], rendezvous: str | None = None, address: str | None = None
) -> list[str]:
    """Return the torchrun command that starts the processes of this machine.

    Args:
        world: The machines, and the processes on each.
        train: The arguments of `lora-sft`.
        rendezvous: HOST:PORT of one of the machines, equal on all of them. None on a single
            machine: torchrun then finds a free port.
        address: The address of this machine, if the others do not find it by its host name.

    Raises: RecipeError if `rendezvous` is not HOST:PORT.
    """
    options = ["--standalone"]
    if rendezvous is not None:
        host = _read_host(rendezvous)
        name = hashlib.sha256(" ".join([rendezvous, *train]).encode()).hexdigest()[:12]
        options = [f"--nnodes={world.nodes}", "--rdzv-backend=c10d"]
        options += [f"--rdzv-endpoint={rendezvous}", f"--rdzv-id={name}"]
        if address is not None:
            options += [f"--local-addr={address}"]
            if _find_addresses(host) & _find_addresses(address):
                options += ["--rdzv-conf=is_host=1"]
    head = [sys.executable, "-m", "torch.distributed.run", *options]
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
    """Return a host name and the addresses that it resolves to.

    torch does not check the option `is_host`. Without it, torch compares the rendezvous with this
    machine's own name. So the option is given only if an address is equal: two different names can
    still be the same machine.
    """
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return {host}
    return {host, *(str(entry[4][0]) for entry in found)}


def make_deepspeed_command(
    world: World, train: Sequence[str], hostfile: Path, variables: Mapping[str, str]
) -> list[str]:
    """Return the command of DeepSpeed's launcher, which reaches other machines over ssh.

    It uses the first machines of the hostfile. Without `--force_multi` it would start the processes
    on this machine if the hostfile has one line, or with `--num_nodes=1`.

    Args:
        world: The machines, and the processes on each.
        train: The arguments of `lora-sft`.
        hostfile: The path of the hostfile.
        variables: Environment variables for the processes. The command `env` sets them on each
            machine, because the launcher passes on only some variables (PYTHON*, NCCL* and so on).
    """
    head = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={hostfile}"]
    size = [f"--num_nodes={world.nodes}", f"--num_gpus={world.gpus}"]
    given = [f"{name}={value}" for name, value in variables.items()]
    words = [*given, sys.executable, "-u", "-m", "lora_sft", *train]
    quoted = [_quote_for_pdsh(word) for word in words]
    return [*head, *size, "--force_multi", "--no_python", "--no_local_rank", "env", *quoted]


def _quote_for_pdsh(word: str) -> str:
    """Quote one word for the remote shell, to which pdsh passes all words as one line.

    DeepSpeed (`PDSHRunner.parse_user_args`) puts a word with a space into double quotes and escapes
    the double quotes in it. It does not escape `\\`, `$` and backquotes, so this function does.
    """
    if " " in word:
        return re.sub(r"([\\$`])", r"\\\1", word)
    return shlex.quote(word)
