"""The run's processes on this machine, as /proc shows them below a launcher."""

from __future__ import annotations

import os
import signal
from pathlib import Path

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # by a worker, all at once


def find_workers(launcher: int) -> list[int]:
    """Process ids of the run's processes below a launcher (not of their own helpers)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    workers, unseen = [], list(children.get(launcher, []))
    while unseen:
        process = unseen.pop()
        if _has_rank(process):
            workers.append(process)
        else:
            unseen += children.get(process, [])
    return workers


def is_listening(process: int) -> bool:
    """Whether a worker has its signal handlers.

    In its first moments SIGTERM would end it with nothing said, SIGUSR1 would be lost (it inherits
    the launcher's deafness) and SIGINT would be Python's own: all three must be caught.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return all(int(caught, 16) >> (number - 1) & 1 for number in HANDLED)


def send(process: int, number: signal.Signals) -> None:
    """Send a signal to a process, which may be gone."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _has_rank(process: int) -> bool:
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(b"RANK=") for variable in variables)
