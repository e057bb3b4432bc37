"""Write an output folder so that it is complete as soon as it exists.

All files are written to a hidden folder beside the output, which is renamed at the end. A merge
that is killed leaves the hidden folder, and the next merge deletes it. The hidden folder gets its
config.json only after its weights, so an incomplete model cannot be loaded. A lock stops two merges
from writing to the same output.

A run may replace its own earlier merge. For this, the folder records the id and the path of the
run, and every file that was written. A folder is never replaced if a file in it was added or
changed, or if another run or a copy of the run wrote it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.log import say
from lora_sft.run_directory import RunDirectory, write_json

OWNER_FILE = ".lora_sft_run.json"  # hidden, because hidden files are not uploaded


@dataclass(frozen=True)
class Owner:
    """A run that merges in its own `export` and may replace its earlier merge.

    Attributes:
        run_id: The run's id. A copy of the run has the same id.
        path: The run directory.
    """

    run_id: str
    path: Path


def check_output_is_free(output: Path, owner: Owner | None = None) -> None:
    """Check that a merge may write to `output`.

    If an earlier merge was killed between its two renames, first restore the folder that it
    renamed.

    Args:
        output: The folder to write.
        owner: A run that may replace its own earlier merge, if no file in it was changed.

    Raises: ExportError if `output` has any other content.
    """
    output = output.resolve()  # follow a link: the hidden folders are on the output's disk
    _restore_replaced_merge(output)
    if not _is_taken(output):
        return
    if owner is None or not output.is_dir():
        raise ExportError("the output exists already", str(output), "give another folder")
    if problem := _explain_refusal(output, owner):
        raise ExportError(
            f"the output exists already: {problem}",
            str(output),
            "move it away, or give another folder (if the run has started already, move it)",
        )


def _explain_refusal(output: Path, owner: Owner) -> str:
    """Return why `owner` may not replace `output`; empty if it may."""
    record = _read_record(output)
    if record.get("run") != owner.run_id:
        return "this run did not write it"
    if _belongs_to_another_run(record, owner):
        return (
            f"the run in {record['path']} wrote it, and one of the two runs is a copy of the other"
        )
    written = record.get("files")
    written = written if isinstance(written, dict) else {}
    for name, state in sorted(_list_files(output).items()):
        if name not in written:
            return f"the merge did not write {name}"
        if state != written[name]:
            return f"{name} was changed after the merge"
    return ""


def _belongs_to_another_run(record: Mapping[str, Any], owner: Owner) -> bool:
    """Return whether another directory than `owner.path` holds the run that wrote the merge.

    If the recorded directory does not hold the run any more, the run was moved to `owner.path`.
    """
    maker = RunDirectory(Path(str(record.get("path"))))
    try:
        if not maker.manifest.exists() or maker.path.samefile(owner.path):
            return False
        return (maker.read_json(maker.manifest) or {}).get("id") == owner.run_id
    except PermissionError:  # the directory may hold the run, but cannot be read
        return True


def write_owner_file(folder: Path, owner: Owner) -> None:
    """Record in `folder` which run wrote it, and every file that was written."""
    files = _list_files(folder)
    path = str(owner.path.resolve())
    write_json(folder / OWNER_FILE, {"run": owner.run_id, "path": path, "files": files})


def _restore_replaced_merge(output: Path) -> None:
    """Restore the earlier merge if the merge that should replace it was killed."""
    replaced = name_replaced_folder(output)
    if _is_taken(output) or not (replaced / OWNER_FILE).exists():
        return
    with suppress(FileNotFoundError):  # another process of this run has restored it
        replaced.rename(output)
        say(f"{output}: restored the earlier merge, because the merge that replaced it was killed")


def _is_taken(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def _list_files(folder: Path) -> dict[str, list[int] | None]:
    """Return all files and folders below `folder`: size and time of a file, None for a folder.

    Files are not hashed, because every start calls this and a model can have hundreds of gigabytes.
    A copied file with a new modification time counts as changed. That is safe: then the merge is
    refused, and nothing is deleted.
    """
    files: dict[str, list[int] | None] = {}
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        is_folder = stat.S_ISDIR(found.st_mode)
        name = path.relative_to(folder).as_posix()
        files[name] = None if is_folder else [found.st_size, found.st_mtime_ns]
    files.pop(OWNER_FILE, None)
    return files


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / OWNER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def name_staging_folder(output: Path) -> Path:
    """Return the hidden folder in which the output is written, on the same file system."""
    return output.with_name(f".{output.name}.merging")


def name_replaced_folder(output: Path) -> Path:
    """Return the hidden folder to which the run's earlier merge is renamed before it is deleted."""
    return output.with_name(f".{output.name}.replaced")


@contextmanager
def open_staging_folder(output: Path) -> Iterator[Path]:
    """Yield an empty hidden folder that only this process writes to. Delete it after an error.

    Raises: ExportError if another merge is writing to this output, or if a replaced merge cannot be
    deleted.
    """
    staged = name_staging_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staged.mkdir(exist_ok=True)
    lock = os.open(staged, os.O_RDONLY)
    try:
        _lock(lock, output)
        _delete_contents(staged)
        _restore_replaced_merge(output)
        _delete_replaced_merge(name_replaced_folder(output))
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
            "wait until it has ended, or give another output",
        ) from error


def _delete_contents(folder: Path) -> None:
    """Delete the files that a killed merge left in a folder."""
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def move_into_place(staged: Path, place: Path, owner: Owner | None = None) -> None:
    """Rename the finished folder to `place`, and flush the rename to the disk.

    `place` may be missing, an empty folder, or `owner`'s earlier merge. An earlier merge is renamed
    first and deleted last, so that the model at `place` is always complete. Between the two renames
    there is no model at `place`. If the process is killed then, the next start restores the earlier
    merge.

    Raises: ExportError if `place` has any other content.
    """
    check_output_is_free(place, owner)
    replaced = name_replaced_folder(place)
    if _is_taken(place):
        place.rename(replaced)
    try:
        staged.rename(place)
    except OSError:
        if replaced.exists():
            replaced.rename(place)
        raise
    parent = os.open(place.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    try:
        _delete_replaced_merge(replaced)
    except ExportError as error:
        say(f"warning: {error.faults[0].what}: {replaced}")


def _delete_replaced_merge(replaced: Path) -> None:
    if not replaced.exists():
        return
    try:
        # First the owner file: without it, a partly deleted merge is never restored.
        (replaced / OWNER_FILE).unlink(missing_ok=True)
        shutil.rmtree(replaced)
    except OSError as error:
        raise ExportError(
            f"the earlier merge cannot be deleted: {error.strerror}",
            str(replaced),
            "stop the program that reads it, delete this folder, and start again",
        ) from error
