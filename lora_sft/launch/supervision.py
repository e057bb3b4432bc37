"""Start a launcher, forward signals to its workers, and return their exit code.

By itself, a launcher returns its own exit code, and a signal ends it. torchrun kills the workers
half a minute after SIGTERM, and SIGUSR1 kills torchrun at once. Here the workers receive the
signals, save their state and end. Their exit code is returned.
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
from lora_sft.launch.workers import find_workers, handles_signals, kill_orphans, send
from lora_sft.processes.outcome import OUTCOME_VARIABLE
from lora_sft.processes.world import RANK_VARIABLES
from lora_sft.run_directory import RunDirectory

END_FILES = "processes/*/end.json"  # in the run directory
# The signal that a worker receives for each signal that `launch` receives. Workers do not handle
# SIGHUP, the signal of a closed terminal.
FORWARDED_AS = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
}
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # prctl(2)
POLL_SECONDS = 0.2
END_POLL_SECONDS = 1.0  # longer, because the run directory may be on a network file system
NO_WORKER_SECONDS = 10.0  # if no worker exists so long after a signal, the launcher receives it
LAUNCHER_SECONDS = 45.0  # more than the 30 s that DeepSpeed's launcher gives its workers
LEAVE_SECONDS = 10.0  # more than the 4 s in which workers end after the end of the run


@dataclass
class Received:
    """A signal that `launch` received, and the workers that it was forwarded to."""

    number: signal.Signals
    at: float
    sent_to: set[int] = field(default_factory=set)


def supervise(command: Sequence[str], environment: Mapping[str, str], run: RunDirectory) -> int:
    """Run a launcher until it ends, and return the exit code of its workers.

    Args:
        command: The launcher's command.
        environment: Its environment variables.
        run: The run directory. If the workers on this machine left no exit code, it is read from
            `end.json` or `status.json` there.
    """
    with _note_signals() as received, tempfile.TemporaryDirectory(prefix="lora-sft-") as folder:
        outcome = Path(folder) / "exit_code"
        ends = EndReader(run)
        status_before = _identify(run.status)
        own = {name: value for name, value in environment.items() if name not in RANK_VARIABLES}
        process = subprocess.Popen(
            list(command),
            env={**own, OUTCOME_VARIABLE: str(outcome)},
            start_new_session=True,  # so that only this process receives the terminal's Ctrl-C
            preexec_fn=_prepare_launcher,
        )
        launcher = Launcher(process, received, ends)
        while process.poll() is None:
            launcher.update()
            time.sleep(POLL_SECONDS)
        if process.returncode == EXIT_DONE:
            return EXIT_DONE
        if process.returncode < 0:
            _kill_orphans(-process.returncode, f"{OUTCOME_VARIABLE}={outcome}")
        was_signalled = bool(received)
        return (
            _read_outcome(outcome, was_signalled)
            or ends.read_code()
            or _read_status(run.status, status_before, was_signalled)
            or launcher.stopped_with
            or EXIT_UNEXPECTED
        )


class EndReader:
    """A reader of `end.json`, in which a worker wrote why the run ends (see `processes.watch`).

    Files of earlier starts are ignored.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._before = set(run.path.glob(END_FILES))

    def read_code(self) -> int:
        """Return the exit code of the run; 0 while no worker has ended it."""
        for path in set(self.run.path.glob(END_FILES)) - self._before:
            return _read_code(_read_document(path))
        return EXIT_DONE


class Launcher:
    """A running launcher: forward signals to its workers, and end it after the run has ended."""

    def __init__(
        self, process: subprocess.Popen[bytes], received: list[Received], ends: EndReader
    ) -> None:
        self.process = process
        self.received = received
        self.ends = ends
        self.stopped_with = EXIT_DONE  # the exit code for the signal that stopped the launcher
        self._stopped_at: float | None = None
        self._ended_at: float | None = None
        self._end_checked_at = time.monotonic()

    def update(self) -> None:
        """Do what is necessary now; called several times per second."""
        if self.received:
            self._forward()
        if time.monotonic() - self._end_checked_at > END_POLL_SECONDS:
            self._end_checked_at = time.monotonic()
            self._kill_after_end()

    def _forward(self) -> None:
        """Send every received signal to every worker that handles signals by now."""
        workers = find_workers(self.process.pid)
        for worker in filter(handles_signals, workers):
            for each in self.received:
                if worker not in each.sent_to:
                    each.sent_to.add(worker)
                    send(worker, each.number)
        if not workers:
            self._stop_launcher()

    def _stop_launcher(self) -> None:
        """Send SIGTERM to the launcher if no worker appears on this machine; kill it later.

        The workers may be on other machines, or not started yet. torchrun then leaves the
        rendezvous. DeepSpeed's launcher ends its ssh sessions and sends SIGTERM to the remote
        workers.
        """
        now, first = time.monotonic(), self.received[0]
        if self._stopped_at is None and now - first.at > NO_WORKER_SECONDS:
            self._stopped_at = now
            is_interrupt = first.number == signal.SIGINT
            self.stopped_with = EXIT_INTERRUPTED if is_interrupt else EXIT_RESUME_ME
            send(self.process.pid, signal.SIGTERM)
        elif self._stopped_at is not None and now - self._stopped_at > LAUNCHER_SECONDS:
            self._kill()

    def _kill_after_end(self) -> None:
        """Kill workers that still run after the end of the run, and then the launcher.

        A worker may be suspended, and the launcher may wait for it. They are sent SIGKILL: a
        process that can handle SIGTERM has ended by itself.
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
        for worker in find_workers(self.process.pid):  # torchrun's are not in its process group
            send(worker, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def _note_signals() -> Iterator[list[Received]]:
    """Note every signal in the yielded list inside the block."""
    received: list[Received] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(Received(FORWARDED_AS[signal.Signals(number)], time.monotonic()))

    noted = [number for number in FORWARDED_AS if not _is_ignored_by_nohup(number)]
    before = {number: signal.signal(number, receive) for number in noted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored_by_nohup(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _prepare_launcher() -> None:
    """Prepare the new process in which the launcher will run.

    The launcher must ignore SIGUSR1, which would kill it; the workers install their own handlers.
    If `launch` is killed, the kernel sends SIGTERM to the launcher, which then ends its workers.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _kill_orphans(number: int, variable: str) -> None:
    """Kill the workers of a launcher that died of a signal: it could not end them itself."""
    orphans = kill_orphans(variable)
    if orphans:
        ids = ", ".join(map(str, orphans))
        print(
            f"the launcher was killed by signal {number}; its processes {ids} were killed too",
            file=sys.stderr,
        )


def _read_document(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty dict if the file has no JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_code(document: Mapping[str, Any]) -> int:
    code = document.get("exit_code")
    return code if isinstance(code, int) else EXIT_DONE


def _read_outcome(outcome: Path, was_signalled: bool) -> int:
    """Return the exit code that the first failed worker wrote; 0 without a file.

    The code of a worker that a signal ended at once counts only if `launch` received a signal.
    Otherwise the launcher sent it, because another worker had died.
    """
    document = _read_document(outcome)
    return _read_code(document) if was_signalled or not document.get("was_told") else EXIT_DONE


def _identify(file: Path) -> tuple[int, int] | None:
    """Return what differs after a file was written again; None if there is no file.

    Its date alone is not enough: the clock of this machine, or of a file server, may be set back.
    """
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read_status(status: Path, before: tuple[int, int] | None, was_signalled: bool) -> int:
    """Return the exit code in `status.json`; 0 if this start did not write it.

    The code of a stopped run (75 or 130) counts only if `launch` received a signal, or if the run
    saved its state. Rank 0 writes the same code if the launcher ends it while the model loads.
    """
    is_ours = _identify(status) not in (None, before)
    document = _read_document(status)
    code = _read_code(document)
    if code in (EXIT_RESUME_ME, EXIT_INTERRUPTED) and not was_signalled:
        is_ours = is_ours and document.get("state_saved") is True
    return code if is_ours else EXIT_DONE
