"""A disk that is full, said in three lines: the libraries say it in as many ways as they write.

Python raises ENOSPC, safetensors an error of its own with the number in it, and torch's zip writer
a RuntimeError about a position that is not the one it expected (2.13 `inline_container.cc`).
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

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_BYTES = 1_000_000  # a disk with less left is full ..
FULL_SHARE = 0.1  # .. unless it is itself as small, and empty
WORDS = ("inline_container", "basic_ios", "No space left", "StorageFull", "QuotaExceeded")
GO_ON = "and start it again: it goes on from the last checkpoint"


@dataclass(frozen=True)
class Place:
    """A folder that training writes to, and what helps where its disk is full."""

    folder: Path
    fix: str


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Inside, a write that found no room is a TrainingError with the path and the free space.

    `folder`: the run's, one of those that are looked at where the error does not say which it was.
    """
    try:
        yield
    except LoraSftError:
        raise
    except Exception as error:  # each library has an exception of its own for it; others go on
        if not is_about_a_full_disk(error):
            raise
        raise describe_full_disk(_find_path(error), list_places(folder)) from error


def list_places(run: Path) -> list[Place]:
    """Where training writes: run, cache, temporary files, what data workers hand over."""
    places = [
        Place(run, "make room (train.save_total_limit keeps fewer checkpoints)"),
        Place(
            find_cache_folder(), f"make room, or set {CACHE_FOLDER_VARIABLE} to a folder elsewhere"
        ),
        Place(Path(tempfile.gettempdir()), "make room, or set TMPDIR to a folder elsewhere"),
    ]
    if Path("/dev/shm").exists():
        fix = "make it larger (docker run --shm-size), or write train.dataloader_num_workers: 0"
        places.append(Place(Path("/dev/shm"), fix))
    return places


def describe_full_disk(path: Path | None, places: Sequence[Place]) -> TrainingError:
    """The error for a write that found no room: to `path`, or to the one place that is full.

    Where none is (a quota, or what was half written is cleared away) or several are, no disk is
    named, and the free space of each is.
    """
    fix = "make room"
    if path is None:
        full = {_find_device(place.folder): place for place in reversed(places) if _is_full(place)}
        if len(full) != 1:
            return _describe_places(places)
        ((_, place),) = full.items()
        path, fix = place.folder, place.fix
    what = f"cannot write: no room on the disk of {path} ({_describe_free(path)})"
    return TrainingError(what, f"{path}", f"{fix} {GO_ON}")


def _describe_places(places: Sequence[Place]) -> TrainingError:
    return TrainingError(
        "cannot write: no room on a disk, or for more files of this user",
        "one of " + "; ".join(f"{each.folder}: {_describe_free(each.folder)}" for each in places),
        f"make room there, or raise the quota, {GO_ON}",
    )


def _is_full(place: Place) -> bool:
    try:
        disk = os.statvfs(_find_existing(place.folder))
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
    """The file that an error, or what it came from, names."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL and isinstance(seen.filename, str):
            return Path(seen.filename)
        seen = seen.__cause__ or seen.__context__
    return None


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


def _describe_free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(_find_existing(path)).free / 1e6:,.1f} MB free"
    except OSError as error:
        return f"its free space is not known: {error.strerror}"
