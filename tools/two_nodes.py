"""Train on two simulated nodes: two network namespaces on this machine, joined by a virtual cable.

Usage (as root, with `ip` from iproute2):

    python tools/two_nodes.py RECIPE [FIELD=VALUE ...]        # train
    python tools/two_nodes.py --kill 1 RECIPE ...             # kill the worker of node 1
    python tools/two_nodes.py --stop 0 RECIPE ...             # stop the worker of node 0 (SIGSTOP)
    python tools/two_nodes.py --launcher launch RECIPE ...    # `lora-sft launch` on each node

Each namespace has only its own address and its own loopback device. So the processes must find each
other over the network, through torchrun's rendezvous, as on two real nodes.

The tool prints one JSON document: the exit code of each node's launcher, and the seconds until it
ended. With `--kill` or `--stop` the seconds count from the signal, else from the start. The tool's
exit code is 0 if both launchers ended with 0, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500
READY_SECONDS = 240  # the time for the first checkpoint, or for a whole run, on a busy machine
END_SECONDS = 120  # the time in which both launchers must end after the signal


@dataclass(frozen=True)
class Node:
    """One network namespace: its name and its address."""

    name: str
    address: str

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command inside the namespace, in a new process group."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": f"{self.name}-eth",
            "NCCL_SOCKET_IFNAME": f"{self.name}-eth",
        }
        inside = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(inside, env=environment, start_new_session=True)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Make two namespaces joined by a veth pair, and delete them afterwards."""
    names = [f"lora{os.getpid()}{side}" for side in "ab"]
    nodes = (Node(names[0], ADDRESSES[0]), Node(names[1], ADDRESSES[1]))
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        first, second = (f"{node.name}-eth" for node in nodes)
        _ip("link", "add", first, "type", "veth", "peer", "name", second)
        for node in nodes:
            device = f"{node.name}-eth"
            _ip("link", "set", device, "netns", node.name)
            _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", device)
            _ip("-n", node.name, "link", "set", device, "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
        yield nodes
    finally:
        for node in nodes:
            subprocess.run(["ip", "netns", "delete", node.name], capture_output=True, check=False)


def make_command(launcher: str, recipe: list[str], node: Node) -> list[str]:
    """Return the command of one node: one process per node, rendezvous at the first node.

    Both nodes have the same host name, so each must be given its address.
    """
    meeting = f"{ADDRESSES[0]}:{PORT}"
    if launcher == "launch":
        launch = ["launch", *recipe, "--nodes=2", "--gpus=1", f"--rendezvous={meeting}"]
        return [sys.executable, "-m", "lora_sft", *launch, f"--address={node.address}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "--rdzv-id=two-nodes"]
    is_host = int(node.address == ADDRESSES[0])
    own = [f"--local-addr={node.address}", f"--rdzv-conf=is_host={is_host}"]
    return [*torchrun, *rendezvous, *own, "-m", "lora_sft", "train", *recipe]


def find_worker(node: Node) -> int | None:
    """Return the process id of the training process in a namespace, or None."""
    listed = subprocess.run(
        ["ip", "netns", "pids", node.name], capture_output=True, text=True, check=True
    )
    for pid in map(int, listed.stdout.split()):
        with suppress(OSError):
            if b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                return pid
    return None


def disturb_worker(node: Node, number: signal.Signals, run_directory: Path) -> None:
    """Send a signal to a node's worker as soon as the run has a checkpoint to resume from."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        worker = find_worker(node)
        if worker is not None and any(run_directory.glob("checkpoints/*/manifest.json")):
            os.kill(worker, number)
            return
        time.sleep(0.05)
    raise SystemExit(f"the run wrote no checkpoint to {run_directory} within {READY_SECONDS} s")


def run(
    launcher: str,
    recipe: list[str],
    run_directory: Path,
    disturbed: int | None,
    number: signal.Signals,
) -> dict[str, object]:
    """Train on both nodes to the end.

    Returns: The JSON document, with `exit_codes` and `seconds` per node; None if a node's launcher
        did not end in time.
    """
    with two_nodes() as nodes:
        processes = [node.start(make_command(launcher, recipe, node)) for node in nodes]
        try:
            if disturbed is not None:
                disturb_worker(nodes[disturbed], number, run_directory)
            began = time.monotonic()
            ended: dict[int, float] = {}
            limit = READY_SECONDS if disturbed is None else END_SECONDS
            while len(ended) < len(processes) and time.monotonic() - began < limit:
                for index, process in enumerate(processes):
                    if process.poll() is not None:
                        ended.setdefault(index, round(time.monotonic() - began, 1))
                time.sleep(0.05)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {"exit_codes": codes, "seconds": [ended.get(index) for index in range(len(codes))]}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--launcher",
        choices=("torchrun", "launch"),
        default="torchrun",
        help="the launcher on each node: torchrun, or `lora-sft launch` (default: %(default)s)",
    )
    disturb = parser.add_mutually_exclusive_group()
    disturb.add_argument(
        "--kill", type=int, choices=(0, 1), help="send SIGKILL to the worker of this node"
    )
    disturb.add_argument(
        "--stop", type=int, choices=(0, 1), help="send SIGSTOP to the worker of this node"
    )
    parser.add_argument(
        "recipe", nargs="+", metavar="RECIPE", help="the recipe, then overrides FIELD=VALUE"
    )
    arguments = parser.parse_args()

    from lora_sft.recipe import read_recipe

    recipe = read_recipe(arguments.recipe[0], arguments.recipe[1:])
    directory = Path(recipe.output_dir)
    is_stop = arguments.stop is not None
    disturbed = arguments.stop if is_stop else arguments.kill
    number = signal.SIGSTOP if is_stop else signal.SIGKILL
    result = run(arguments.launcher, arguments.recipe, directory, disturbed, number)
    print(json.dumps(result))
    raise SystemExit(0 if result["exit_codes"] == [0, 0] else 1)


if __name__ == "__main__":
    main()
