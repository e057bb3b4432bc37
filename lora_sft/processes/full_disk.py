"""Turn the errors that a full disk causes into one error with the path and the free space.

The libraries report a full disk in different ways. Python raises an OSError with ENOSPC.
safetensors raises an exception of its own with that number in its text. torch's zip writer raises a
RuntimeError about an unexpected file position (2.13 `inline_container.cc`).
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_sft.cache_folder import CACHE_FOLDER_VARIABLE, find_cache_folder
from lora_sft.errors import LoraSftError, TrainingError

FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
# A disk counts as full if less than FULL_BYTES is free. On a disk smaller than 10 MB, less than
# FULL_SHARE of its size must be free: otherwise an empty small disk would count as full.
FULL_BYTES = 1_000_000
FULL_SHARE = 0.1
FULL_DISK_WORDS = ("inline_container", "basic_ios", "No space left", "StorageFull", "QuotaExceeded")
START_AGAIN = "and start the same command again: it continues from the last checkpoint"


@dataclass(frozen=True)
class WrittenFolder:
    """A folder that training writes to.

    Attributes:
        folder: Its path. It may not exist yet.
        fix: The advice to the user if its disk is full.
    """

    folder: Path
    fix: str


@contextmanager
def explain_full_disk(run: Path) -> Iterator[None]:
    """Raise a TrainingError in place of any error that a full disk caused in the block.

    Args:
        run: The run directory. If the error names no path, the disks of the run directory and of
            the other folders that training writes to are checked.

    Raises: TrainingError with the path and the free space of its disk.
    """
    try:
        yield
    except LoraSftError:
        raise
    except Exception as error:  # each library raises another class for a full disk
        if not is_full_disk_error(error):
            raise
        raise make_full_disk_error(_find_path(error), list_written_folders(run)) from error


def list_written_folders(run: Path) -> list[WrittenFolder]:
    """Return the folders that training writes to: run, cache, temporary files, shared memory."""
    folders = [
        WrittenFolder(run, "free space on it (train.save_total_limit keeps fewer checkpoints)"),
        WrittenFolder(
            find_cache_folder(),
            f"free space on it, or set {CACHE_FOLDER_VARIABLE} to a folder on another disk",
        ),
        WrittenFolder(
            Path(tempfile.gettempdir()),
            "free space on it, or set TMPDIR to a folder on another disk",
        ),
    ]
    if Path("/dev/shm").exists():  # data loading workers pass batches through it
        fix = "make it larger (docker run --shm-size), or write train.dataloader_num_workers: 0"
        folders.append(WrittenFolder(Path("/dev/shm"), fix))
    return folders


def make_full_disk_error(path: Path | None, folders: Sequence[WrittenFolder]) -> TrainingError:
    """Return the error for a write that failed because of a full disk.

    It names the disk of `path`. Without a path it names the disk of `folders` that is full. That
    disk is not known if several are full, or if no disk is full now (a quota was reached, or the
    incomplete file was deleted). Then the error lists the free space of every folder.
    """
    fix = "free space on it"
    if path is None:
        full = {_find_device(each.folder): each for each in reversed(folders) if _is_full(each)}
        if len(full) != 1:
            return _list_free_space(folders)
        ((_, found),) = full.items()
        path, fix = found.folder, found.fix
    what = f"cannot write: the disk of {path} is full ({_describe_free(path)})"
    return TrainingError(what, f"{path}", f"{fix} {START_AGAIN}")


def _list_free_space(folders: Sequence[WrittenFolder]) -> TrainingError:
    return TrainingError(
        "cannot write: a disk is full, or this user has reached a quota",
        "one of " + "; ".join(f"{each.folder}: {_describe_free(each.folder)}" for each in folders),
        f"free space on that disk, or raise the quota, {START_AGAIN}",
    )


def _is_full(written: WrittenFolder) -> bool:
    try:
        disk = os.statvfs(_find_existing(written.folder))
    except OSError:
        return False
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    is_out_of_files = disk.f_files > 0 and disk.f_favail == 0
    return is_out_of_files or free < min(FULL_BYTES, FULL_SHARE * size)


def _find_device(path: Path) -> int:
    return _find_existing(path).stat().st_dev


def _find_existing(path: Path) -> Path:
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _find_path(error: BaseException) -> Path | None:
    """Return the path that a full-disk error, or one of its causes, names; None if none does."""
    seen: BaseException | None = error
    while seen is not None:
        if (
            isinstance(seen, OSError)
            and seen.errno in FULL_DISK_ERRNOS
            and isinstance(seen.filename, str)
        ):
            return Path(seen.filename)
        seen = seen.__cause__ or seen.__context__
    return None


def is_full_disk_error(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, says that a disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL_DISK_ERRNOS:
            return True
        if _says_full_disk(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _says_full_disk(text: str) -> bool:
    """Return whether the text of a library's error means a full disk.

    torch's writer reports any other cause after the word "strerror", and its reader has no disk.
    """
    if "Reader" in text or ("strerror" in text and os.strerror(errno.ENOSPC) not in text):
        return False
    return any(word in text for word in FULL_DISK_WORDS)


def _describe_free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(_find_existing(path)).free / 1e6:,.1f} MB free"
    except OSError as error:
        return f"cannot read its free space: {error.strerror}"
