"""End a run of several processes as soon as one of them dies, hangs or fails.

If a process dies, the others wait for it in a collective. NCCL reports that after
`train.ddp_timeout` (half an hour), and gloo only if the connection breaks. So each process writes
a heartbeat file into the run directory once per second, and reads the file of the next rank:

- If a process fails, all processes end within a few seconds, with its reason.
- If a process on the same machine has died, the run ends after a few heartbeats.
- If a heartbeat stops changing, the run ends after `DEAD_SECONDS`. The process may be on a lost
  machine, suspended, or stuck in native code.
- If no process makes a step for nine tenths of `train.ddp_timeout`, the run ends as stalled. That
  is before a collective would time out.

A process that was itself suspended, for example by a scheduler, starts all these waits again.

The first process that notices writes `end.json`, and only this process writes `status.json`. Every
process then writes the stacks of its threads into the same folder and ends. All this uses files,
because the process group is what hangs. A process never compares the clocks of two machines: it
only notices whether a file changes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from lora_sft.errors import EXIT_TRAINING, TrainingError
from lora_sft.processes.stop_signal import Stopped
from lora_sft.processes.this_process import Processes

FOLDER = "processes"  # in the run directory; removed if the run ends without an error
BEAT_SECONDS = 1.0
DEAD_SECONDS = 20.0
GONE_BEATS = 3  # how many heartbeats to wait for the reason that a dead process may have written
END_BYTES = 4096  # reserved for `end.json`, also if the disk becomes full
BLIND_SECONDS = 5.0  # if this thread did not run for so long, it cannot judge the others
STALL_SHARE = 0.9  # of the time limit of a collective


@dataclass(frozen=True)
class End:
    """Why the run ends, and the rank of the process that ended it."""

    process_rank: int
    exit_code: int
    reason: str


class EndedElsewhere(TrainingError):
    """Another process ended the run; this process ends with the same reason and exit code."""

    def __init__(self, end: End, folder: Path) -> None:
        what = f"process {end.process_rank} ended the run: {end.reason}"
        super().__init__(what, str(folder), f"read the messages of process {end.process_rank}")
        self.exit_code = end.exit_code


class Watch:
    """A thread that writes this process's heartbeat and checks the heartbeat of the next rank.

    Args:
        folder: The folder of this start, shared by all processes.
        processes: The rank of this process, and the world size.
        stall_seconds: How long all processes may make no step.
        write_status: Writes `status.json` from an exit code and a reason. It must not raise.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        stall_seconds: float,
        write_status: Callable[[int, str], None],
    ) -> None:
        self.folder = folder
        self.processes = processes
        self.stall_seconds = stall_seconds
        self._write_status = write_status
        self._progress = 0
        self._is_stepping = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._stacks: IO[str] | None = None
        self._end_file: IO[str] | None = None
        self._identity = {
            "host": socket.gethostname(),
            "pids": _identify_process_ids(),
            "pid": os.getpid(),
        }

    def start(self) -> None:
        """Write the first heartbeat, and start to check the next rank."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Both files are opened now, because a full disk may be the reason to write them.
        self._stacks = self._path("stacks", "txt").open("w")
        self._end_file = self._path("end", "staged").open("w+")
        self._end_file.write(" " * END_BYTES)  # reserves the space; JSON may end in blanks
        self._end_file.flush()
        self._beat(0)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; if the run ended without an error, delete this process's files."""
        self._is_over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        for file in (self._stacks, self._end_file):
            if file is not None:
                file.close()
        self._path("end", "staged").unlink(missing_ok=True)
        if self.find_end() is not None:
            return
        for path in self.folder.glob(f"*-{self.processes.process_rank}.*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other processes have files in it, or removed it
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def step(self) -> None:
        """Count one unit of progress: a micro-batch, an evaluation batch or a checkpoint."""
        self._progress += 1

    def expect_steps(self, is_stepping: bool) -> None:
        """Set whether a missing step is a stall; loading and merging may take any time."""
        self._progress += 1
        self._is_stepping = is_stepping

    def find_end(self) -> End | None:
        """Return why the run ends; None while no process has ended it."""
        record = _read(self.folder / "end.json")
        return End(**record) if record is not None else None

    def end(self, exit_code: int, reason: str) -> End:
        """End the run on all processes. Return the exit code and reason of the first that ended it.

        The first process that ends the run decides both. This function raises nothing: if the file
        cannot be written, it returns those of this process.
        """
        mine = End(self.processes.process_rank, exit_code, reason)
        try:
            self._write_end(json.dumps(mine.__dict__))
        except FileExistsError:
            return self.find_end() or mine
        except OSError as error:
            print(f"warning: cannot write why the run ends: {error}", file=sys.stderr)
        self._write_status(exit_code, reason)
        return mine

    def _write_end(self, text: str) -> None:
        """Create `end.json` with `text`.

        A hard link to the reserved file makes the whole text visible at once. Some file systems
        have no hard links: then the file is written directly, and a reader may see half of it.

        Raises: FileExistsError if another process has created it.
        """
        path = self.folder / "end.json"
        if self._end_file is not None:
            try:
                self._end_file.seek(0)
                self._end_file.write(text.ljust(END_BYTES))
                self._end_file.flush()
                os.link(self._path("end", "staged"), path)
                return
            except FileExistsError:
                raise
            except OSError:
                pass
        with path.open("x", encoding="utf-8") as file:
            file.write(text)

    def explain(self, error: BaseException) -> BaseException:
        """Return the error to show: the one of another process, if that was the cause.

        A collective fails on every process if one process is missing, and a launcher sends SIGTERM
        to the remaining processes. The missing process has usually written its own reason. If it
        has died without one, the returned error names that process.
        """
        if isinstance(error, TrainingError) or not is_about_others(error):
            return error
        is_signal = isinstance(error, Stopped)
        deadline = time.monotonic() + GONE_BEATS * BEAT_SECONDS
        gone = ""
        while time.monotonic() < deadline:
            end = self.find_end()
            if end is not None and is_signal:
                return error
            if end is not None:
                return EndedElsewhere(end, self.folder)
            gone = gone or self._find_gone()
            time.sleep(BEAT_SECONDS / 4)
        if is_signal and not gone:
            return error
        text = " ".join(str(error).split())[:300]
        return TrainingError(
            gone or f"the connection to another process broke: {text}",
            f"process {self.processes.process_rank}, {self.folder}",
            "read the launcher's output for the cause (often a lack of memory); "
            "the same command continues from the last checkpoint",
        )

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        beats, moved, progress = 0, time.monotonic(), self._progress
        neighbour = (self.processes.process_rank + 1) % self.processes.world_size
        seen: Any = None
        turn, seen_at, gone_since = moved, moved, 0
        while not self._is_over.wait(BEAT_SECONDS):
            beats += 1
            self._beat(beats)
            before, turn = turn, time.monotonic()
            now = turn
            if now - before > BLIND_SECONDS:
                moved, seen_at, gone_since = now, now, 0
            if self._progress != progress or not self._is_stepping:
                moved, progress = now, self._progress
            record = _read(self._path("beat", "json", neighbour))
            if record != seen:
                seen, seen_at = record, now
            gone_since = gone_since + 1 if record is not None and _is_gone(record) else 0
            end = self.find_end()
            if end is None and gone_since > GONE_BEATS and record is not None:
                end = self.end(EXIT_TRAINING, _describe_gone(neighbour, record))
            elif end is None and now - seen_at > DEAD_SECONDS:
                where = f" on {record['host']}" if record else ""
                what = f"process {neighbour}{where} sent no heartbeat for {DEAD_SECONDS:.0f} s"
                end = self.end(EXIT_TRAINING, what)
            elif end is None and now - moved > self.stall_seconds:
                end = self.end(EXIT_TRAINING, self._describe_stall())
            if end is not None:
                self._leave(end)

    def _beat(self, count: int) -> None:
        """Write a heartbeat. If the next one is late, faulthandler writes the stacks."""
        path = self._path("beat", "json")
        staged = path.with_suffix(".staged")
        record = {"beat": count, "progress": self._progress, **self._identity}
        try:
            staged.write_text(json.dumps(record), encoding="utf-8")
            staged.replace(path)
        except FileNotFoundError:  # the run is over and its folder was removed
            return
        except OSError as error:  # if the disk is full, the next checkpoint ends the run
            print(f"warning: cannot write a heartbeat: {error}", file=sys.stderr)
        assert self._stacks is not None
        faulthandler.dump_traceback_later(DEAD_SECONDS, file=self._stacks, exit=False)

    def _leave(self, end: End) -> None:
        """Write the stacks and end the process, because its main thread may hang for ever."""
        faulthandler.cancel_dump_traceback_later()
        assert self._stacks is not None
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        self._stacks.flush()
        # The main thread may be ending by itself, with a better message.
        self._is_over.wait(GONE_BEATS * BEAT_SECONDS)
        if not self._is_over.is_set():
            rank = self.processes.process_rank
            print(f"process {rank} ends: {end.reason}; stacks: {self.folder}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(end.exit_code)

    def _describe_stall(self) -> str:
        counts = {}
        for rank in range(self.processes.world_size):
            record = _read(self._path("beat", "json", rank))
            counts[rank] = record["progress"] if record else -1
        behind = [rank for rank, count in counts.items() if count == min(counts.values())]
        slowest = f"; process {behind[0]} is behind the others" if len(behind) == 1 else ""
        return f"no process made a step for {self.stall_seconds:.0f} s{slowest}"

    def _find_gone(self) -> str:
        for rank in range(self.processes.world_size):
            record = _read(self._path("beat", "json", rank))
            if record is not None and _is_gone(record):
                return _describe_gone(rank, record)
        return ""

    def _path(self, kind: str, suffix: str, rank: int | None = None) -> Path:
        rank = self.processes.process_rank if rank is None else rank
        return self.folder / f"{kind}-{rank}.{suffix}"


def _describe_gone(rank: int, record: dict[str, Any]) -> str:
    place = f"pid {record['pid']} on {record['host']}"
    return f"process {rank} ({place}) died without an error message"


@cache
def _identify_process_ids() -> str:
    """Return a name for the process ids of this machine, valid until it boots again.

    Each container has process ids of its own. The host name cannot tell containers apart: those
    that share the network of their machine also share its name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _is_gone(record: dict[str, Any]) -> bool:
    """Return whether the process of a heartbeat ran on this machine and has ended.

    A zombie process counts as ended.
    """
    if record["pids"] != _identify_process_ids():
        return False
    try:
        os.kill(record["pid"], 0)
        state = Path(f"/proc/{record['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return state in ("Z", "X")


def is_about_others(error: BaseException) -> bool:
    """Return whether another process may have caused the error: a signal or a collective."""
    name, text = type(error).__name__, str(error).lower()
    words = ("gloo", "nccl", "connection", "timed out", "tcpstore", "broken pipe", "rendezvous")
    return (
        isinstance(error, Stopped)
        or name.startswith("Dist")
        or (isinstance(error, RuntimeError | OSError) and any(word in text for word in words))
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return record if isinstance(record, dict) else None
