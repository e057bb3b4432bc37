"""Find the worker processes of a launcher on this machine in /proc, and send them signals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # the signals that a worker handles
END_SECONDS = 5.0  # how long a killed process may take to end


def find_workers(launcher: int) -> list[int]:
    """Return the process ids of a launcher's workers, without the child processes of workers."""
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


def kill_orphans(variable: str) -> list[int]:
    """Kill the workers that still run after their launcher has died, and return their ids.

    Their parent process is then init.

    Args:
        variable: NAME=VALUE of an environment variable that only the workers of this launcher have,
            so that no other process is killed.
    """
    parents = _read_parents()
    found = {process for process in parents if _is_worker(process, variable)}
    orphans = [process for process in found if parents[process] not in found]
    for process in orphans:
        send(process, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while any(_is_worker(each, variable) for each in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)  # a living worker holds locks that the next start needs
    return sorted(orphans)


def _read_parents() -> dict[int, int]:
    """Return the parent of every process on this machine, by process id."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    return parents


def handles_signals(process: int) -> bool:
    """Return whether a worker has installed its handlers for all of `HANDLED`.

    Before that, SIGTERM would end the worker without a message, SIGUSR1 would be ignored (as in the
    launcher that started it), and SIGINT would raise Python's KeyboardInterrupt.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return all(int(caught, 16) >> (number - 1) & 1 for number in HANDLED)


def send(process: int, number: signal.Signals) -> None:
    """Send a signal to a process; do nothing if the process has ended."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _is_worker(process: int, variable: str = "") -> bool:
    """Return whether a living process has RANK in its environment, and `variable` if it is given.

    A dead process has no environment.
    """
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    has_rank = any(each.startswith(b"RANK=") for each in variables)
    return has_rank and (not variable or variable.encode() in variables)
