"""Start a launcher, pass signals on to the processes it starts, and return their exit code.

A launcher reports its own exit code and treats a signal as its own end (torchrun kills the
workers half a minute later, and dies of SIGUSR1 at once). Here signals go to the workers, which
save and leave, and the code is the one that they left with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from lora_sft.errors import EXIT_DONE, EXIT_UNEXPECTED

OUTCOME = "LORA_SFT_OUTCOME"  # names a file in which a worker leaves its exit code
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_SECONDS = 0.2


def leave_outcome(environment: Mapping[str, str], exit_code: int) -> None:
    """Called by a worker: keep its exit code for whoever started the launcher.

    The first that is no success counts: the main process may fail after the others are done.
    """
    path = environment.get(OUTCOME)
    if path is None or exit_code == EXIT_DONE:
        return
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(str(exit_code))
    except OSError:
        return


def supervise(command: Sequence[str], environment: Mapping[str, str], status: Path) -> int:
    """Run a launcher to its end; the exit code of its workers.

    `status`: the run's `status.json`, for a worker that was ended before it could speak.
    """
    waiting: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    before = {number: signal.signal(number, receive) for number in FORWARDED}
    with tempfile.TemporaryDirectory(prefix="lora-sft-") as folder:
        outcome = Path(folder) / "exit_code"
        started = time.time()
        process = subprocess.Popen(
            list(command),
            env={**environment, OUTCOME: str(outcome)},
            start_new_session=True,  # a terminal's Ctrl-C reaches the workers through us alone
            preexec_fn=_ignore_user_signal,
        )
        try:
            while process.poll() is None:
                _forward(waiting, process.pid)
                time.sleep(POLL_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return _read_exit_code(process.returncode, outcome, status, started)


def _ignore_user_signal() -> None:
    """The launcher would die of it; the workers set their own handlers."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _forward(waiting: list[int], launcher: int) -> None:
    """Send what came to the workers; it waits until there are some."""
    workers = find_workers(launcher) if waiting else []
    if not workers:
        return
    number = waiting.pop(0)
    for worker in workers:
        try:
            os.kill(worker, number)
        except ProcessLookupError:
            continue


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


def _has_rank(process: int) -> bool:
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(b"RANK=") for variable in variables)


def _read_exit_code(returned: int, outcome: Path, status: Path, started: float) -> int:
    if returned == EXIT_DONE:
        return EXIT_DONE
    try:
        return int(outcome.read_text(encoding="utf-8")) or EXIT_UNEXPECTED
    except (OSError, ValueError):  # no worker came so far
        return _read_status(status, started) or EXIT_UNEXPECTED


def _read_status(status: Path, started: float) -> int:
    """The exit code in `status.json`, if this start wrote it."""
    try:
        if status.stat().st_mtime < started:
            return EXIT_UNEXPECTED
        return int(json.loads(status.read_text(encoding="utf-8"))["exit_code"])
    except (OSError, ValueError, KeyError):
        return EXIT_UNEXPECTED
