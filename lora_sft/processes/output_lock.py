"""Lock an output directory, so that only one run at a time writes into it.

Two runs in one directory would overwrite each other's checkpoints without an error. The kernel
holds the lock and releases it when the process ends, also after a crash.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
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


@contextmanager
def locked(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Lock the run directory `folder` inside the block; only rank 0 takes the lock.

    On a read-only disk no lock is necessary: nothing can be written there.

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
    has_lock = try_lock(file, fcntl.LOCK_EX)
    file.seek(0)
    holder = file.read().strip()
    if not has_lock:
        raise RecipeError(
            f"another run uses this output directory ({holder or 'unknown'})",
            f"{folder}  output_dir",
            "wait until that run has ended, or set another output_dir",
        )
    if holder and not holder.startswith(HOLDER):
        raise RecipeError(
            f"the run would overwrite a file that lora-sft did not write: {LOCK_FILE}",
            f"{folder}  output_dir",
            "move it to another folder, or set another output_dir",
        )
    os.ftruncate(file.fileno(), 0)
    # Without a buffer: text that stays in a buffer of a full disk fails again when it is closed.
    os.write(file.fileno(), f"{HOLDER}{os.getpid()} on {socket.gethostname()}".encode())


def try_lock(file: IO[str], kind: int) -> bool:
    """Try to lock a file, and return whether this process now has the lock.

    On a file system without locks, warn and return True.

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
    return True
