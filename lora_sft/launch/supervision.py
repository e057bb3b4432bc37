"""Start a launcher, pass signals on to the processes it starts, and return their exit code.

A launcher reports its own exit code and treats a signal as its own end (torchrun kills the
workers half a minute later, and dies of SIGUSR1 at once). Here signals go to the workers, which
save and leave, and the code is the one that they left with.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lora_sft.errors import EXIT_DONE, EXIT_UNEXPECTED
from lora_sft.launch.workers import find_workers, is_listening, send

OUTCOME = "LORA_SFT_OUTCOME"  # names a file in which a worker leaves its exit code
# What a worker is told for each signal that comes here; it knows nothing of a lost terminal.
TOLD_AS = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
}
POLL_SECONDS = 0.2


@dataclass
class Received:
    """A signal that came, and the workers that have had it."""

    number: signal.Signals
    told: set[int] = field(default_factory=set)


def leave_outcome(environment: Mapping[str, str], exit_code: int) -> None:
    """Called by a worker: keep its exit code for whoever started the launcher. The first counts."""
    path = environment.get(OUTCOME)
    if path is None:
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
    with _receiving() as received, tempfile.TemporaryDirectory(prefix="lora-sft-") as folder:
        outcome = Path(folder) / "exit_code"
        started = time.time()
        process = subprocess.Popen(
            list(command),
            env={**environment, OUTCOME: str(outcome)},
            start_new_session=True,  # a terminal's Ctrl-C reaches the workers through us alone
            preexec_fn=_ignore_user_signal,
        )
        while process.poll() is None:
            _forward(received, process.pid)
            time.sleep(POLL_SECONDS)
        return _read_exit_code(process.returncode, outcome, status, started)


@contextmanager
def _receiving() -> Iterator[list[Received]]:
    """Inside, signals are noted in the list that is given."""
    received: list[Received] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(Received(TOLD_AS[signal.Signals(number)]))

    # nohup makes a command deaf to SIGHUP, and so it stays
    wanted = [number for number in TOLD_AS if not _is_nohup(number)]
    before = {number: signal.signal(number, receive) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_nohup(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _ignore_user_signal() -> None:
    """The launcher would die of it; the workers set their own handlers."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _forward(received: list[Received], launcher: int) -> None:
    """Tell every worker what came, each as soon as it listens; later ones too."""
    workers = find_workers(launcher) if received else []
    for worker in filter(is_listening, workers):
        for one in received:
            if worker not in one.told:
                one.told.add(worker)
                send(worker, one.number)


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
