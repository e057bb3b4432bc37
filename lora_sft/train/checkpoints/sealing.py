"""A checkpoint counts once its manifest is there: written last, with the hash of every file.

The stock trainer writes straight into `checkpoint-N` and takes the highest number on resume
(transformers 5.23), so that a run killed while it saved cannot go on, and a flipped byte is
trained on. Here a folder without a manifest is one that was never finished, and a file that is
not the one that was written is named and never loaded. That is also what DeepSpeed's shards need:
they are pickles, which run code when they load.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lora_sft.file_names import MANIFEST_FILE
from lora_sft.run_directory import write_json


def seal(checkpoint: Path, world_size: int) -> None:
    """Flush every file of a checkpoint to disk, then write their hashes."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        _flush(path)
        name = path.relative_to(checkpoint).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    write_json(checkpoint / MANIFEST_FILE, {"world_size": world_size, "files": files})
    _flush(checkpoint)


def find_damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in a few words; nothing where every file is as written."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"{MANIFEST_FILE} is missing: it was never finished"
    for name, written in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written["bytes"] or _hash(path) != written["sha256"]:
            return f"{name} is not the file that was saved"
    return ""


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """`{"world_size", "files": {name: {"bytes", "sha256"}}}`; None for an unfinished checkpoint."""
    try:
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
