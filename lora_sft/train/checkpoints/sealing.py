"""Seal a checkpoint with a manifest that has the hash of every file, and check it later.

The Trainer writes directly into `checkpoint-N` and resumes from the highest number (transformers
5.23). If a run is killed while it saves, it cannot be resumed; and a damaged file is loaded without
an error. Here the manifest is written last. A folder without one is an unfinished checkpoint, and a
file with another hash is reported and never loaded. Hashes prove damage and not origin: DeepSpeed's
shards are pickles, which can run code, so the manifest of a checkpoint with shards is also signed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.file_names import MANIFEST_FILE
from lora_sft.run_directory import write_json
from lora_sft.train.checkpoints.signing import sign
from lora_sft.train.zero import has_shards


def seal(checkpoint: Path, world_size: int) -> None:
    """Flush every file of a checkpoint to disk, then write the manifest."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        _flush(path)
        files[path.relative_to(checkpoint).as_posix()] = describe_file(path)
    manifest = {"world_size": world_size, "files": files}
    write_json(checkpoint / MANIFEST_FILE, sign(manifest) if has_shards(checkpoint) else manifest)
    _flush(checkpoint)


def find_damage(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint; empty if every file is unchanged."""
    if is_unfinished(checkpoint):
        return f"{MANIFEST_FILE} is missing: this checkpoint was never finished"
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"{MANIFEST_FILE} is damaged"
    return find_changed_file(checkpoint, manifest["files"])


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and the hash of a file, as a manifest records them."""
    return {"bytes": path.stat().st_size, "sha256": _hash(path)}


def find_changed_file(folder: Path, files: Mapping[str, Any]) -> str:
    """Return which file differs from its record, and how; empty if all are unchanged."""
    for name, written in files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != written["bytes"] or _hash(path) != written["sha256"]:
                return f"{name} has changed since it was saved"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def is_unfinished(checkpoint: Path) -> bool:
    """Return whether the checkpoint has no manifest: the run was killed while it saved."""
    return not os.path.lexists(checkpoint / MANIFEST_FILE)


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint; None if it is missing or damaged.

    It is `{"world_size": N, "files": {name: {"bytes": N, "sha256": HASH}}, "signature": HMAC}`.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # ValueError: not UTF-8, or not JSON
        return None
    return manifest if _is_whole(manifest) else None


def _is_whole(manifest: Any) -> bool:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("world_size"), int):
        return False
    return bool(manifest.get("files")) and is_whole_record(manifest["files"])


def is_whole_record(files: Any) -> bool:
    """Return whether a record of files has a size and a hash for each file."""
    return isinstance(files, dict) and all(
        isinstance(each, dict)
        and isinstance(each.get("bytes"), int)
        and isinstance(each.get("sha256"), str)
        for each in files.values()
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
