"""Lock an output directory, so that only one run at a time writes into it.

Two runs in one directory would overwrite each other's checkpoints without an error. The kernel
holds the lock and releases it when the process ends, also after a crash. A forked process, such as
a worker that loads data, has a copy of the open file, and may outlive a killed run by seconds. So
each forked process closes its copy at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from lora_sft.errors import RecipeError
from lora_sft.log import say

LOCK_FILE = ".lock"
HOLDER = "process "  # the lock file begins with it; other content is that of another program
# The errors of file systems without locks (some NFS and Lustre mounts).
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
ENDING_SECONDS = 30.0  # how long a start waits for the lock of a process that is ending
POLL_SECONDS = 0.1
EXITING_FLAG = 0x4  # PF_EXITING of Linux (include/linux/sched.h)

_locked_files: weakref.WeakSet[IO[str]] = weakref.WeakSet()


@contextmanager
def locked(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Lock the run directory `folder` inside the block; only rank 0 takes the lock.

    On a read-only disk no lock is necessary: nothing can be written there.

    If the process that holds the lock is ending, wait for it: a scheduler may restart a killed run
    at once, and a large process needs seconds to end.

    Raises: RecipeError if another run holds the lock, or the lock file cannot be written.
    """
    if not is_main:
        yield
        return
    with ExitStack() as stack:
        try:
            file = (folder / LOCK_FILE).open("a+", encoding="utf-8", errors="replace")
            _take_lock(stack.enter_context(file), folder)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise RecipeError(
                    f"cannot write the lock file of the output directory: {error.strerror}",
                    f"{folder}  output_dir",
                    "set output_dir to a directory that this user can write",
                ) from error
        yield


def _take_lock(file: IO[str], folder: Path) -> None:
    """Lock the open lock file, and write the id of this process into it."""
    deadline = time.monotonic() + ENDING_SECONDS
    while not try_lock(file, fcntl.LOCK_EX):
        _check_holder_is_ending(_read_holder(file), folder, deadline)
        time.sleep(POLL_SECONDS)
    holder = _read_holder(file)
    if holder and not holder.startswith(HOLDER):
        raise RecipeError(
            f"the run would overwrite a file that lora-sft did not write: {LOCK_FILE}",
            f"{folder}  output_dir",
            "move it to another folder, or set another output_dir",
        )
    os.ftruncate(file.fileno(), 0)
    # Without a buffer: text that stays in a buffer of a full disk fails again when it is closed.
    os.write(file.fileno(), f"{HOLDER}{os.getpid()} on {socket.gethostname()}".encode())


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _check_holder_is_ending(holder: str, folder: Path, deadline: float) -> None:
    """Check that the process which holds the lock will release it soon.

    Raises: RecipeError if that process is running, or if the deadline has passed.
    """
    if not is_ending(holder):
        raise RecipeError(
            f"another run uses this output directory ({holder or 'unknown'})",
            f"{folder}  output_dir",
            "wait until that run has ended, or set another output_dir",
        )
    if time.monotonic() > deadline:
        raise RecipeError(
            f"{holder} has ended, but a process that it started still uses this output directory",
            f"{folder}  output_dir",
            f"find that process with fuser {folder / LOCK_FILE}, and end it",
        )


def is_ending(holder: str) -> bool:
    """Return whether the process in the text of a lock file has ended, or is just ending.

    A process of another machine counts as running, because it cannot be seen from here.
    """
    found = re.fullmatch(HOLDER + r"(\d+) on (.+)", holder)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is running, as another user
        return False
    try:
        stat = Path(f"/proc/{found[1]}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has just ended, or this system has no /proc
        return False
    state, *numbers = stat.rpartition(")")[2].split()
    return state in "ZX" or bool(int(numbers[5]) & EXITING_FLAG)


def try_lock(file: IO[str], kind: int) -> bool:
    """Try to lock a file, and return whether this process now has the lock.

    A process that is forked later closes the file. On a file system without locks, warn and return
    True.

    Args:
        file: The open file to lock.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        say(
            f"warning: {file.name}: this file system has no locks; "
            "do not start a second run in this folder"
        )
    _locked_files.add(file)
    return True


def _close_locked_files() -> None:
    """Close the locked files in a forked process. The lock of its parent stays."""
    for file in _locked_files:
        file.close()


os.register_at_fork(after_in_child=_close_locked_files)
