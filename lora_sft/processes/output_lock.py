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
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lora_sft.errors import RecipeError
from lora_sft.log import say

LOCK_FILE = ".lock"
# The errors of file systems without locks (some NFS and Lustre mounts).
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Lock the run directory `folder` inside the block; only rank 0 takes the lock.

    Raises: RecipeError if another run holds the lock.
    """
    if not is_main:
        yield
        return
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        if not try_lock(file, fcntl.LOCK_EX):
            file.seek(0)
            raise RecipeError(
                f"another run uses this output directory ({file.read().strip() or 'unknown'})",
                f"{folder}  output_dir",
                "wait until that run has ended, or set another output_dir",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


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
