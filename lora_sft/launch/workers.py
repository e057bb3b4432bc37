"""The run's processes on this machine, as /proc shows them below a launcher."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # by a worker, all at once
END_SECONDS = 5.0  # after SIGKILL


def find_workers(launcher: int) -> list[int]:
    """Process ids of the run's processes below a launcher (not of their own helpers)."""
    children: dict[int, list[int]] = {}
    for process, parent in _read_parents().items():
        children.setdefault(parent, []).append(process)
    workers, unseen = [], list(children.get(launcher, []))
    while unseen:
        process = unseen.pop()
        if _is_worker(process):
            workers.append(process)
        else:
            unseen += children.get(process, [])
    return workers


def end_orphans(variable: str) -> list[int]:
    """Kill the run's processes that outlived their launcher; returns their ids.

    They hang below init then. `variable`: NAME=VALUE of the environment that only those have which
    this launcher started, so that no other process is taken for one of them.
    """
    parents = _read_parents()
    found = {process for process in parents if _is_worker(process, variable)}
    orphans = [process for process in found if parents[process] not in found]
    for process in orphans:
        send(process, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while any(_is_worker(each, variable) for each in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)  # the next start would find their locks
    return sorted(orphans)


def _read_parents() -> dict[int, int]:
    """Process -> its parent, of all on this machine."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    return parents


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


def _is_worker(process: int, variable: str = "") -> bool:
    """Whether it has a rank, and `variable`; a dead process has no environment."""
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    has_rank = any(each.startswith(b"RANK=") for each in variables)
    return has_rank and (not variable or variable.encode() in variables)
