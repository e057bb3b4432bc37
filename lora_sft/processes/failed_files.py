"""Turn the errors about files of a run into one error that names the file and the reason.

A disk may fail, become full or read-only, and a user may remove the output directory of a run that
trains. The libraries report that in different ways. Python raises an OSError. safetensors and
tokenizers (Rust) write "(os error 5)" into the text of their own errors. torch's zip writer raises
a RuntimeError with the reason after "strerror" (2.13 `inline_container.cc`).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_sft.errors import LoraSftError, TrainingError
from lora_sft.processes.full_disk import explain_full_disk, is_full_disk_error

# A device or a mount failed. Such an error often names no path.
DEVICE_ERRNOS = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)
_RUST = re.compile(r"\(os error (?P<number>\d+)\)(?: at path \"(?P<path>[^\"]+)\")?")
_TORCH = re.compile(r"open file failed with strerror: (?P<reason>.+)")
_TORCH_PARENT = re.compile(r"Parent directory (?P<path>.+) does not exist")


@dataclass(frozen=True)
class Failure:
    """Why a file could not be read or written, and its path; None if the error names none."""

    reason: str
    path: str | None = None
    number: int | None = None


@contextmanager
def explain_failed_files(run: Path) -> Iterator[None]:
    """Raise a TrainingError in place of any error about a file of the run in the block.

    Args:
        run: The run directory.

    Raises: TrainingError with the path and the reason.
    """
    with explain_full_disk(run):
        try:
            yield
        except LoraSftError:
            raise
        except Exception as error:  # each library raises another class
            failure = None if is_full_disk_error(error) else _find_failure(error, run)
            if failure is None:
                raise
            raise _make_error(failure, run) from error


def _make_error(failure: Failure, run: Path) -> TrainingError:
    what = f"cannot read or write a file of the run: {failure.reason}"
    if not run.exists():
        what = "the output directory was removed while the run trained"
    return TrainingError(
        what,
        failure.path or str(run),
        "check the disk and the permissions of output_dir, and start the same command again: it "
        "continues from the last checkpoint that is still there",
    )


def _find_failure(error: BaseException, run: Path) -> Failure | None:
    """Return the first failure about a file of the run, in the error and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        failure = _read_failure(seen)
        if failure is not None and _is_about_run(failure, run):
            return failure
        seen = seen.__cause__ or seen.__context__
    return None


def _read_failure(error: BaseException) -> Failure | None:
    if isinstance(error, OSError):
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        return Failure(error.strerror or str(error), path, error.errno)
    text = str(error)
    if found := _RUST.search(text):
        number = int(found["number"])
        return Failure(os.strerror(number), found["path"], number)
    if found := _TORCH.search(text):
        return Failure(found["reason"])
    if found := _TORCH_PARENT.search(text):
        return Failure(os.strerror(errno.ENOENT), found["path"], errno.ENOENT)
    return None


def _is_about_run(failure: Failure, run: Path) -> bool:
    """Return whether a failure is about a file of the run.

    torch's writer names neither path nor number. In a run it writes only into checkpoints.
    """
    if failure.path is not None:
        return Path(failure.path).absolute().is_relative_to(run.absolute())
    return failure.number is None or failure.number in DEVICE_ERRNOS or not run.exists()
