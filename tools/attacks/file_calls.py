"""Kill a process before its Nth call that changes a file of the run.

An audit hook of Python sees the calls, so no other program is necessary. It sees every file that
is opened to write, renamed, deleted or flushed to disk. It does not see the calls inside native
libraries (`torch.save` writes a file in C++): `system_calls.py` covers them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = frozenset(
    ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link")
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class FileCalls:
    """Number the calls that change a file below `folder`.

    Attributes:
        folder: The output directory.
        kill_at: Kill this process before the call with this number, from 0; None to kill nothing.
        listing: Write a line per call into this file; None to write nothing.
        rank: Only this rank counts; None for a run of one process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kill_at: int | None = None,
        listing: Path | None = None,
        rank: int | None = None,
    ) -> None:
        self.folder = str(folder)
        self.kill_at = kill_at
        self.rank = rank
        self.count = 0
        self.listing = os.open(listing, os.O_WRONLY | os.O_CREAT) if listing else None

    def install(self) -> None:
        """Count the calls of this process from now on."""
        if self.rank is not None and os.environ["RANK"] != str(self.rank):
            return
        flush = os.fsync

        def see_and_flush(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._see("os.fsync", Path(f"/proc/self/fd/{number}").readlink())
            flush(descriptor)

        os.fsync = see_and_flush
        sys.addaudithook(self._see_event)

    def _see_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if event == "open" else 0
        if event in CHANGES or (isinstance(flags, int) and flags & WRITES):
            self._see(event, arguments[0])

    def _see(self, event: str, place: Any) -> None:
        path = os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""
        if not path.startswith(self.folder):
            return
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        if self.listing is not None:
            name = path[len(self.folder) + 1 :].replace(str(os.getpid()), "PID")
            os.write(self.listing, f"{event} {name}\n".encode())
