"""Find, read and make the key with which this user signs pickles, so that only own ones are loaded.

A hash beside a file proves that the file is undamaged. It does not prove who wrote it, because
whoever changes the file can write a new hash. Only somebody who has the key can sign. The key
therefore lies in the user's own configuration folder, and never beside the files that it signs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

KEY_FILE_VARIABLE = "LORA_SFT_KEY_FILE"
KEY_BYTES = 32
MOST_KEY_BYTES = 4096  # the file may be one that the user made, but it is not read without end


def find_key_file() -> Path:
    """Return `$LORA_SFT_KEY_FILE`, or by default `lora-sft/key` in the user's configuration folder.

    Raises: OSError if this user has no home folder.
    """
    given = os.environ.get(KEY_FILE_VARIABLE)
    if given:
        return Path(given)
    try:
        folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error), "~") from error
    return Path(folder) / "lora-sft" / "key"


def read_key() -> bytes:
    """Return this user's key.

    Raises: OSError if there is none, or if the file is too short to be one.
    """
    path = find_key_file()
    with path.open("rb") as file:
        key = file.read(MOST_KEY_BYTES)
    if len(key) < KEY_BYTES:
        raise OSError(errno.EINVAL, f"a key has at least {KEY_BYTES} bytes", str(path))
    return key


def read_or_make_key() -> bytes:
    """Return this user's key. If there is none yet, make one that only this user can read.

    Raises: OSError if the key can be neither read nor made.
    """
    path = find_key_file()
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_key(path)
    return read_key()


def _make_key(path: Path) -> None:
    """Write a new key under another name, then link it: no process ever reads an incomplete key.

    If another process has made one in the meantime, that one stays.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(staged, path)
    finally:
        staged.unlink()
