"""End a run of several processes as soon as one of them is gone or stands still.

A process that dies leaves the others waiting in a collective, which NCCL notices after
`train.ddp_timeout` (half an hour) and gloo only where the connection breaks. So each process
writes a sign of life into the run directory and looks at its neighbour's:

- an error in any process ends all of them within `BEAT_SECONDS`, and its reason is the run's;
- a process that is gone (same machine) is noticed within a few beats, one that gives no sign of
  life (another machine, stopped, or stuck in native code) after `DEAD_SECONDS`;
- no step for nine tenths of `train.ddp_timeout` is a stall, before a collective may time out.

A process that could not look itself (all of them suspended by a scheduler, say) counts anew.

Whoever notices first writes `end.json`; it alone decides `status.json`. Everybody then writes the
stacks of its threads beside it and leaves. Files, not the process group: that is what hangs.
Clocks are never compared between machines; what counts is that a file changes.
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

FOLDER = "processes"  # of the run directory; gone after a good end
BEAT_SECONDS = 1.0
DEAD_SECONDS = 20.0
GONE_BEATS = 3  # its own word on why it ends may be on the way
WORD_BYTES = 4096
BLIND_SECONDS = 5.0  # without a turn of its own, a process knows nothing of the others
STALL_SHARE = 0.9  # of the collectives' own limit


@dataclass(frozen=True)
class End:
    """Why the run ends, and which process said so."""

    process_rank: int
    exit_code: int
    reason: str


class EndedElsewhere(TrainingError):
    """Another process ended the run: this one leaves with its reason and its exit code."""

    def __init__(self, end: End, folder: Path) -> None:
        what = f"process {end.process_rank} ended the run: {end.reason}"
        super().__init__(what, str(folder), "see what that process printed")
        self.exit_code = end.exit_code


class Watch:
    """This process's signs of life, and its eye on the next one."""

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
        self._word: IO[str] | None = None
        self._identity = {
            "host": socket.gethostname(),
            "pids": _identify_process_ids(),
            "pid": os.getpid(),
        }

    def start(self) -> None:
        """Give the first sign of life, and look at the others from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stacks = self._path("stacks", "txt").open("w")  # kept open: a full disk may be why
        self._word = self._path("end", "staged").open("w+")
        self._word.write(" " * WORD_BYTES)  # room for it; JSON may end in blanks
        self._word.flush()
        self._beat(0)
        self._thread.start()

    def stop(self) -> None:
        """The run came to its end here; after a good one each process clears up its own files."""
        self._is_over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        for file in (self._stacks, self._word):
            if file is not None:
                file.close()
        self._path("end", "staged").unlink(missing_ok=True)
        if self.find_end() is not None:
            return
        for path in self.folder.glob(f"*-{self.processes.process_rank}.*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are still in there, or were faster
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def step(self) -> None:
        """Something was done: a micro-batch, an evaluation batch."""
        self._progress += 1

    def stepping(self, is_stepping: bool) -> None:
        """Whether steps are to be expected; loading and saving take as long as they take."""
        self._progress += 1
        self._is_stepping = is_stepping

    def find_end(self) -> End | None:
        """Why the run ends, once a process has said so."""
        record = _read(self.folder / "end.json")
        return End(**record) if record is not None else None

    def end(self, exit_code: int, reason: str) -> End:
        """Say that the run ends. The first to do so is right; its word is returned.

        It raises nothing, whatever the file system says: the run ends with `mine` then.
        """
        mine = End(self.processes.process_rank, exit_code, reason)
        try:
            self._say(json.dumps(mine.__dict__))
        except FileExistsError:
            return self.find_end() or mine
        except OSError as error:
            print(f"watch: {error}", file=sys.stderr)
        self._write_status(exit_code, reason)
        return mine

    def _say(self, word: str) -> None:
        """Put `end.json` there, where there is none yet.

        The file was opened at the start, with room for a word, since a full disk may be the
        reason. Not every file system has hard links; without one it may be seen half written.
        """
        path = self.folder / "end.json"
        if self._word is not None:
            try:
                self._word.seek(0)
                self._word.write(word.ljust(WORD_BYTES))
                self._word.flush()
                os.link(self._path("end", "staged"), path)
                return
            except FileExistsError:
                raise
            except OSError:
                pass
        with path.open("x", encoding="utf-8") as file:
            file.write(word)

    def explain(self, error: BaseException) -> BaseException:
        """The error that a person should see: another process's, where that was the cause.

        A collective fails wherever a process is missing; what was wrong with that one it says
        itself, or it is gone without a word. So it is with a SIGTERM, which a launcher sends to
        whoever is left.
        """
        if isinstance(error, TrainingError) or not _is_about_others(error):
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
            "look for its last words in the launcher's output (out of memory?); "
            "the same command goes on from the last checkpoint",
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
                what = f"process {neighbour}{where} gave no sign of life for {DEAD_SECONDS:.0f} s"
                end = self.end(EXIT_TRAINING, what)
            elif end is None and now - moved > self.stall_seconds:
                end = self.end(EXIT_TRAINING, self._describe_stall())
            if end is not None:
                self._leave(end)

    def _beat(self, count: int) -> None:
        """A sign of life; without the next one, native code writes this process's stacks."""
        path = self._path("beat", "json")
        staged = path.with_suffix(".staged")
        record = {"beat": count, "progress": self._progress, **self._identity}
        try:
            staged.write_text(json.dumps(record), encoding="utf-8")
            staged.replace(path)
        except FileNotFoundError:  # the run is over, and its main process cleared up
            return
        except OSError as error:  # a full disk is the run's to report, at its next checkpoint
            print(f"watch: {error}", file=sys.stderr)
        assert self._stacks is not None
        faulthandler.dump_traceback_later(DEAD_SECONDS, file=self._stacks, exit=False)

    def _leave(self, end: End) -> None:
        """Write the stacks and end the process: its main thread may hang for ever."""
        faulthandler.cancel_dump_traceback_later()
        assert self._stacks is not None
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        self._stacks.flush()
        # The main thread may be on its way out by itself, with more to say than this.
        self._is_over.wait(GONE_BEATS * BEAT_SECONDS)
        if not self._is_over.is_set():
            rank = self.processes.process_rank
            print(f"process {rank} leaves: {end.reason}; stacks: {self.folder}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(end.exit_code)

    def _describe_stall(self) -> str:
        counts = {}
        for rank in range(self.processes.world_size):
            record = _read(self._path("beat", "json", rank))
            counts[rank] = record["progress"] if record else -1
        behind = [rank for rank, count in counts.items() if count == min(counts.values())]
        who = f"; process {behind[0]} is behind the others" if len(behind) == 1 else ""
        return f"no process made a step for {self.stall_seconds:.0f} s{who}"

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
    return f"process {rank} (pid {record['pid']} on {record['host']}) is gone without a word"


@cache
def _identify_process_ids() -> str:
    """What process ids are counted in: this boot of this machine, and the container on it.

    Containers that share their machine's network have its name, and ids of their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _is_gone(record: dict[str, Any]) -> bool:
    """Whether a process of this machine exists no more (or is a corpse that nobody collected)."""
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


def _is_about_others(error: BaseException) -> bool:
    """Whether an error can be another process's doing: it comes from a collective."""
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
