"""Hash whole files, and read a file again only if it may have changed.

A hash is kept in the cache folder beside the file's size, times and inode. The time of the last
status change (ctime) is among them, because a program can set the time of the last change (mtime)
but not this one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from lora_sft.cache_folder import find_cache_folder
from lora_sft.log import say
from lora_sft.run_directory import write_json

READ_BYTES = 2**22
SAID_BYTES = 10**9  # reading more than this takes seconds, and is reported
# Two changes within the clock's resolution look alike. So the hash of a younger file is not kept.
SETTLED_NANOSECONDS = 3 * 10**9


def hash_files(files: Sequence[Path]) -> dict[str, str]:
    """Return the XXH3 hash of each file, by file name.

    XXH3 finds every accidental change, and needs a sixth of the time of SHA-256.
    """
    known = {path: _find_kept_hash(path) for path in files}
    unread_bytes = sum(path.stat().st_size for path, kept in known.items() if kept is None)
    if unread_bytes > SAID_BYTES:
        say(f"hashing the base model's weights, once ({unread_bytes / 1e9:,.1f} GB)")
    return {path.name: kept or _hash(path) for path, kept in known.items()}


def _hash(path: Path) -> str:
    seen, started = _read_stamp(path), time.time_ns()
    checksum = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            checksum.update(block)
    is_settled = seen["ctime_ns"] + SETTLED_NANOSECONDS < started
    if is_settled and seen == _read_stamp(path):
        _keep(path, {"stamp": seen, "xxh3": checksum.hexdigest()})
    return checksum.hexdigest()


def _read_stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def _find_kept_hash(path: Path) -> str | None:
    try:
        kept: Any = json.loads(_find_record(path).read_text(encoding="utf-8"))
        return str(kept["xxh3"]) if kept["stamp"] == _read_stamp(path) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a file. Without it, the next start reads the file again."""
    place = _find_record(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, record)
    except OSError:
        return


def _find_record(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return find_cache_folder() / "weights" / f"{name}.json"
