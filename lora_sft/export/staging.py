"""An output folder that appears whole or not at all.

Everything is written into a hidden folder beside the output, which is renamed at the very end; a
killed merge leaves that folder, which has no config.json before its weights are whole, and the
next start deletes it. Two merges into one place are told from each other by a lock.

What a run merged by itself it may replace, when it goes on: the folder names the run, where the run
lies, and every file that was written. Any other folder, one with a file that was added or changed
since, and one that belongs to a copy of the run, is left alone.
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

OWNER_FILE = ".lora_sft_run.json"  # hidden: nothing that begins with a dot is uploaded


@dataclass(frozen=True)
class Owner:
    """The run that merges by itself: its id, which a copy of it has too, and its folder."""

    run_id: str
    path: Path


def check_output_is_free(output: Path, owner: Owner | None = None) -> None:
    """`owner`: a run, whose own earlier merge is not in its way as long as nobody touched it.

    What a start that was killed had moved aside, to replace it, is put back first.

    Raises: ExportError where something else is at `output` already.
    """
    output = output.resolve()  # of a link: what it points to, on that disk
    _put_back(output)
    if not _is_taken(output):
        return
    if owner is None or not output.is_dir():
        raise ExportError("the output exists already", str(output), "give another folder")
    if problem := _find_problem(output, owner):
        raise ExportError(
            f"the output exists already, and {problem}",
            str(output),
            "move it away, or give another folder (for a run that was begun: move it)",
        )


def _find_problem(output: Path, owner: Owner) -> str:
    """Why `output` is not the owner's to replace; empty where it is."""
    record = _read_record(output)
    if record.get("run") != owner.run_id:
        return "is no merge that this run made"
    if _has_another(record, owner):
        return f"is the merge of the run in {record['path']}, which this one was copied from or to"
    written = record.get("files")
    written = written if isinstance(written, dict) else {}
    for name, state in sorted(_list_files(output).items()):
        if name not in written:
            return f"holds what the merge did not write: {name}"
        if state != written[name]:
            return f"was changed since the merge: {name}"
    return ""


def _has_another(record: Mapping[str, Any], owner: Owner) -> bool:
    """Whether the run that made it still lies where it was, and is not `owner`, moved since."""
    maker = RunDirectory(Path(str(record.get("path"))))
    try:
        if not maker.manifest.exists() or maker.path.samefile(owner.path):
            return False
        return (maker.read_json(maker.manifest) or {}).get("id") == owner.run_id
    except PermissionError:  # it may well lie there
        return True


def mark_as_made_by(folder: Path, owner: Owner) -> None:
    """Let the run that merges into `folder` know it as its own later."""
    files = _list_files(folder)
    path = str(owner.path.resolve())
    write_json(folder / OWNER_FILE, {"run": owner.run_id, "path": path, "files": files})


def _put_back(output: Path) -> None:
    aside = name_aside(output)
    if _is_taken(output) or not (aside / OWNER_FILE).exists():
        return
    with suppress(FileNotFoundError):  # another process of this start was faster
        aside.rename(output)
        say(f"{output}: put back the earlier merge, which a start that was killed had moved aside")


def _is_taken(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def _list_files(folder: Path) -> dict[str, list[int] | None]:
    """All that is below `folder`: files with size and time of change, folders by name alone.

    Not by hash: this is asked at every start, and may be of hundreds of gigabytes. A copy with new
    times counts as changed, which costs a refusal; what is taken for unchanged is deleted.
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
    """Where the output is made: beside its place, on the same file system."""
    return output.with_name(f".{output.name}.merging")


def name_aside(output: Path) -> Path:
    """Where the run's earlier merge lies while the new one takes its place."""
    return output.with_name(f".{output.name}.replaced")


@contextmanager
def staged_output(output: Path) -> Iterator[Path]:
    """An empty folder to write into, for this process alone; deleted where an error leaves it.

    Raises: ExportError where another merge is writing there now, or an earlier one that was moved
    aside cannot be deleted.
    """
    staged = name_staging_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staged.mkdir(exist_ok=True)
    lock = os.open(staged, os.O_RDONLY)
    try:
        _lock(lock, output)
        _empty(staged)
        _put_back(output)
        _delete(name_aside(output))
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


def put_in_place(staged: Path, place: Path, owner: Owner | None = None) -> None:
    """Rename the finished folder, and make the rename last.

    What is there may be an empty folder, or `owner`'s own merge of before, which is moved aside
    first and deleted when the new one stands: whatever loads at `place` is whole at any moment.
    Between the two renames nothing does; killed there, the next start puts the earlier one back.

    Raises: ExportError where something else is there.
    """
    check_output_is_free(place, owner)
    before = name_aside(place)
    if _is_taken(place):
        place.rename(before)
    try:
        staged.rename(place)
    except OSError:
        if before.exists():
            before.rename(place)
        raise
    parent = os.open(place.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    try:
        _delete(before)
    except ExportError as error:
        say(f"warning: {error.faults[0].what}: {before}")


def _delete(aside: Path) -> None:
    if not aside.exists():
        return
    try:
        (aside / OWNER_FILE).unlink(missing_ok=True)  # first: half of one is never put back
        shutil.rmtree(aside)
    except OSError as error:
        raise ExportError(
            f"the earlier merge cannot be deleted: {error.strerror}",
            str(aside),
            "end what still reads it, delete that folder, and start again",
        ) from error
