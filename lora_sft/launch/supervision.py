"""Start a launcher, pass signals on to the processes it starts, and return their exit code.

A launcher reports its own exit code and treats a signal as its own end (torchrun kills the
workers half a minute later, and dies of SIGUSR1 at once). Here signals go to the workers, which
save and leave, and the code is the one that they left with.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lora_sft.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_RESUME_ME, EXIT_UNEXPECTED
from lora_sft.launch.workers import end_orphans, find_workers, is_listening, send
from lora_sft.processes.outcome import OUTCOME_VARIABLE
from lora_sft.processes.world import RANK_VARIABLES
from lora_sft.run_directory import RunDirectory

END_FILES = "processes/*/end.json"  # of the run directory
# What a worker is told for each signal that comes here; it knows nothing of a lost terminal.
TOLD_AS = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
}
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # prctl(2)
POLL_SECONDS = 0.2
END_POLL_SECONDS = 1.0  # the run directory may be on a network
NO_WORKER_SECONDS = 10.0  # after a signal: then nobody here is to be told but the launcher
LAUNCHER_SECONDS = 45.0  # that DeepSpeed's gives its workers (30), and some
LEAVE_SECONDS = 10.0  # after the run's end was said: its processes leave within 4


@dataclass
class Received:
    """A signal that came, and the workers that have had it."""

    number: signal.Signals
    at: float
    told: set[int] = field(default_factory=set)


def supervise(command: Sequence[str], environment: Mapping[str, str], run: RunDirectory) -> int:
    """Run a launcher to its end; the exit code of its workers.

    `run`: where a worker that could not speak to us may have left its word, or another one of it.
    """
    with _receiving() as received, tempfile.TemporaryDirectory(prefix="lora-sft-") as folder:
        outcome = Path(folder) / "exit_code"
        ends = Ends(run)
        started = time.time()
        own = {name: value for name, value in environment.items() if name not in RANK_VARIABLES}
        process = subprocess.Popen(
            list(command),
            env={**own, OUTCOME_VARIABLE: str(outcome)},
            start_new_session=True,  # a terminal's Ctrl-C reaches the workers through us alone
            preexec_fn=_settle_launcher,
        )
        launcher = Launcher(process, received, ends)
        while process.poll() is None:
            launcher.look()
            time.sleep(POLL_SECONDS)
        if process.returncode == EXIT_DONE:
            return EXIT_DONE
        if process.returncode < 0:
            _end_orphans(-process.returncode, f"{OUTCOME_VARIABLE}={outcome}")
        is_asked = bool(received)
        return (
            _read_outcome(outcome, is_asked)
            or ends.read_code()
            or _read_status(run.status, started, is_asked)
            or launcher.stopped_with
            or EXIT_UNEXPECTED
        )


class Ends:
    """Whether the run was said to end, since the launcher was started (see `train.watch`)."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._before = set(run.path.glob(END_FILES))

    def read_code(self) -> int:
        """The run's exit code; 0 while there is none."""
        for path in set(self.run.path.glob(END_FILES)) - self._before:
            return _read_code(_read_document(path))
        return EXIT_DONE


class Launcher:
    """A launcher that runs, and what it is due."""

    def __init__(
        self, process: subprocess.Popen[bytes], received: list[Received], ends: Ends
    ) -> None:
        self.process = process
        self.received = received
        self.ends = ends
        self.stopped_with = EXIT_DONE  # the exit code of a run that ended with the launcher
        self._stopped_at: float | None = None
        self._ended_at: float | None = None
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Once every few hundred milliseconds."""
        if self.received:
            self._forward()
        if time.monotonic() - self._looked_at > END_POLL_SECONDS:
            self._looked_at = time.monotonic()
            self._leave_after_the_end()

    def _forward(self) -> None:
        """Tell every worker what came, each as soon as it listens; later ones too."""
        workers = find_workers(self.process.pid)
        for worker in filter(is_listening, workers):
            for one in self.received:
                if worker not in one.told:
                    one.told.add(worker)
                    send(worker, one.number)
        if not workers:
            self._stop()

    def _stop(self) -> None:
        """No worker is here to be told: they are on other machines, or there are none yet.

        torchrun leaves the rendezvous; DeepSpeed's launcher ends its ssh sessions and sends the
        remote workers SIGTERM.
        """
        now, first = time.monotonic(), self.received[0]
        if self._stopped_at is None and now - first.at > NO_WORKER_SECONDS:
            self._stopped_at = now
            is_interrupt = first.number == signal.SIGINT
            self.stopped_with = EXIT_INTERRUPTED if is_interrupt else EXIT_RESUME_ME
            send(self.process.pid, signal.SIGTERM)
        elif self._stopped_at is not None and now - self._stopped_at > LAUNCHER_SECONDS:
            self._kill()

    def _leave_after_the_end(self) -> None:
        """End what lives on after the run's end: a stopped process, and a launcher that waits.

        SIGKILL, for whoever could act on SIGTERM has left by itself.
        """
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now if self.ends.read_code() else None
        elif now - self._ended_at > 2 * LEAVE_SECONDS:
            self._kill()
        elif now - self._ended_at > LEAVE_SECONDS:
            for worker in find_workers(self.process.pid):
                send(worker, signal.SIGKILL)

    def _kill(self) -> None:
        for worker in find_workers(self.process.pid):  # torchrun's are in sessions of their own
            send(worker, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def _receiving() -> Iterator[list[Received]]:
    """Inside, signals are noted in the list that is given."""
    received: list[Received] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(Received(TOLD_AS[signal.Signals(number)], time.monotonic()))

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


def _settle_launcher() -> None:
    """Runs in the launcher, before it is one.

    It would die of SIGUSR1; the workers set their own handlers. Where this process is killed, the
    launcher is sent SIGTERM by the kernel, and ends its workers.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _end_orphans(number: int, variable: str) -> None:
    """A launcher that died of a signal could not end its workers."""
    orphans = end_orphans(variable)
    if orphans:
        killed = f"killed its processes {', '.join(map(str, orphans))}"
        print(f"the launcher died of signal {number}: {killed}", file=sys.stderr)


def _read_document(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; an empty one where it holds none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_code(document: Mapping[str, Any]) -> int:
    code = document.get("exit_code")
    return code if isinstance(code, int) else EXIT_DONE


def _read_outcome(outcome: Path, is_asked: bool) -> int:
    """What the first worker to fail left; 0 for one that was told to stop, and not by us."""
    document = _read_document(outcome)
    return _read_code(document) if is_asked or not document.get("was_told") else EXIT_DONE


def _read_status(status: Path, started: float, is_asked: bool) -> int:
    """The exit code in `status.json`, if this start wrote it.

    The code of a stopped run (75 or 130) counts where we were asked to stop it, or where it saved
    its state: a main process that the launcher ended while it loaded leaves the same code.
    """
    try:
        is_ours = status.stat().st_mtime >= started
    except OSError:
        return EXIT_DONE
    document = _read_document(status)
    code = _read_code(document)
    if code in (EXIT_RESUME_ME, EXIT_INTERRUPTED) and not is_asked:
        is_ours = is_ours and document.get("state_saved") is True
    return code if is_ours else EXIT_DONE
