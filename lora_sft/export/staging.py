"""An output folder that appears whole or not at all.

Everything is written into a hidden folder beside the output, which is renamed at the very end; a
killed merge leaves that folder, which has no config.json before its weights are whole, and the
next start deletes it. Two merges into one place are told from each other by a lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_sft.errors import ExportError


def check_output_is_free(output: Path) -> None:
    """Raises: ExportError where something is at `output` already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError("the output exists already", str(output), "give another folder")


def name_staging_folder(output: Path) -> Path:
    """Where the output is made: beside its place, on the same file system."""
    return output.with_name(f".{output.name}.merging")


@contextmanager
def staged_output(output: Path) -> Iterator[Path]:
    """An empty folder to write into, for this process alone; deleted where an error leaves it.

    Raises: ExportError where another merge is writing there now.
    """
    staged = name_staging_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staged.mkdir(exist_ok=True)
    lock = os.open(staged, os.O_RDONLY)
    try:
        _lock(lock, output)
        _empty(staged)
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ExportError(
            "another merge is writing to this output now",
            str(output),
            "wait for it, or give another output",
        ) from error


def _empty(folder: Path) -> None:
    """Delete what a killed merge left there."""
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def put_in_place(staged: Path, place: Path) -> None:
    """Rename the finished folder (over an empty one at most), and make the rename last."""
    staged.rename(place)
    parent = os.open(place.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
