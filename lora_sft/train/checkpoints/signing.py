"""Sign the manifest of a checkpoint, so that DeepSpeed's pickles load only for who wrote them.

The signature is a keyed hash (HMAC-SHA256) over the manifest, which has the hash of every file. The
key belongs to the user (`user_key`). The other files of a checkpoint need no signature: they are
safetensors and JSON, and the Trainer and PEFT unpickle the rest with `weights_only=True`
(transformers 5.23 `trainer.py`, peft 0.21 `torch_load`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.log import say
from lora_sft.train.zero import list_shard_files
from lora_sft.user_key import KEY_FILE_VARIABLE, find_key_file, read_key, read_or_make_key

SIGNATURE = "signature"
OPTION = "--trust-checkpoint"
KEPT_KEY = f"set {KEY_FILE_VARIABLE} to a file that is kept and that all machines can read"


def sign(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with a signature, or as it is if there is no key.

    `prepare_key` has warned at the beginning of the run if there is no key.
    """
    try:
        key = read_or_make_key()
    except OSError:
        return dict(manifest)
    return {**manifest, SIGNATURE: _compute(key, manifest)}


def find_doubt(checkpoint: Path, manifest: Mapping[str, Any]) -> str:
    """Return why DeepSpeed's files in a checkpoint may be of another author.

    Returns: An empty text if there are none, or if this user signed them.
    """
    files = list_shard_files(checkpoint)
    if files is None:
        return ""
    unlisted = [name for name in files if name not in manifest["files"]]
    if unlisted:
        return f"the manifest does not list {unlisted[0]}"
    if SIGNATURE not in manifest:
        return "the manifest has no signature"
    try:
        key = read_key()
    except OSError as error:
        return f"this user's key cannot be read ({_describe(error)})"
    if not hmac.compare_digest(str(manifest[SIGNATURE]), _compute(key, manifest)):
        return f"the key in {find_key_file()} did not sign the manifest"
    return ""


def prepare_key() -> None:
    """Read this user's key or make it, and tell the user where it is.

    Later starts need the key. So a key that cannot be made is reported when a run begins.
    """
    try:
        read_or_make_key()
    except OSError as error:
        say(
            f"warning: DeepSpeed's states are not signed, because there is no key "
            f"({_describe(error)}). Continuing this run will need {OPTION}; to avoid this, "
            f"{KEPT_KEY}"
        )
    else:
        say(f"DeepSpeed's states are signed with the key {find_key_file()}; keep it to continue")


def identify_key() -> str:
    """Return a short hash that differs for two keys; empty if there is no key."""
    try:
        return hashlib.sha256(b"lora-sft key: " + read_key()).hexdigest()[:16]
    except OSError:
        return ""


def warn_of_other_keys(keys: Mapping[int, Any]) -> None:
    """Print a warning if a process cannot check what rank 0 signs.

    Args:
        keys: The results of `identify_key`, by rank.
    """
    others = [rank for rank, key in keys.items() if key != keys[0]]
    if keys[0] and others:
        say(
            f"warning: process {others[0]} does not have the key of process 0, as its machine has "
            f"another home folder. Continuing this run will need {OPTION}; to avoid this, "
            f"{KEPT_KEY}"
        )


def _compute(key: bytes, manifest: Mapping[str, Any]) -> str:
    signed = {name: value for name, value in manifest.items() if name != SIGNATURE}
    text = json.dumps(signed, sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _describe(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}"
