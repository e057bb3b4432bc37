"""A disk that is full, said in three lines: the libraries say it in as many ways as they write.

Python raises ENOSPC, safetensors an error of its own with the number in it, and torch's zip writer
a RuntimeError about a position that is not the one it expected (2.13 `inline_container.cc`).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_sft.errors import LoraSftError, TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS = ("inline_container", "basic_ios", "No space left", "StorageFull", "QuotaExceeded")


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Inside, a write that found no room is a TrainingError with the path and the free space.

    `folder`: where it was, if the error does not say so.
    """
    try:
        yield
    except LoraSftError:
        raise
    except Exception as error:  # each library has an exception of its own for it; others go on
        if not is_about_a_full_disk(error):
            raise
        path = Path(getattr(error, "filename", None) or folder)
        raise TrainingError(
            f"cannot write: no room on the disk of {path} ({_describe_free(folder)})",
            f"{path}",
            "make room (train.save_total_limit keeps fewer checkpoints) and start it again: "
            "it goes on from the last checkpoint",
        ) from error


def is_about_a_full_disk(error: BaseException) -> bool:
    """Whether an error, or what it came from, is a write without room."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(word in str(seen) for word in WORDS) and "Reader" not in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _describe_free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    except OSError as error:
        return f"its free space is not known: {error.strerror}"
