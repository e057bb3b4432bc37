"""One run at a time in an output directory.

Two runs that share one would write over each other's checkpoints, and each would look right. The
lock is the kernel's: it is gone with its process, however that ended.
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
# What file systems without locks answer (some NFS and Lustre mounts).
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def locked(folder: Path, *, is_main: bool) -> Iterator[None]:
    """Hold the run directory for this run; its main process does so for all.

    Raises: RecipeError where another run holds it.
    """
    if not is_main:
        yield
        return
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        if not try_lock(file, fcntl.LOCK_EX):
            file.seek(0)
            raise RecipeError(
                f"another run is writing there ({file.read().strip() or 'it does not say which'})",
                f"{folder}  output_dir",
                "wait for its end, or choose another output_dir",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def try_lock(file: IO[str], kind: int) -> bool:
    """Take a lock if it is free. A file system that knows no locks gives it to anybody."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        say(f"warning: {file.name}: no locks on this file system; start no second run there")
    return True
