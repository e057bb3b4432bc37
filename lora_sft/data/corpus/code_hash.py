"""Hash the code that decides the tokens of a corpus: a changed label rule makes another corpus.

The hash covers every Python file and every template in `lora_sft/data`, new files included. Only
code that works on a finished corpus is left out, so that a change there does not make users prepare
every corpus again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

PACKAGE = Path(__file__).parents[2]
CODE_SUFFIXES = (".py", ".jinja")
# Paths relative to the package. Packing and the preview work on finished labelled rows.
LEFT_OUT = (PurePosixPath("data/preview"), PurePosixPath("data/corpus/packing.py"))


def hash_deciding_code(package: Path) -> str:
    """Return a hash of the path and the bytes of every file that decides a corpus.

    Args:
        package: The folder of the package `lora_sft`. The paths are relative to it, so that the
            same code has the same hash wherever it is installed.
    """
    combined = hashlib.sha256()
    for path, file in list_deciding_files(package).items():
        file_hash = hashlib.sha256(file.read_bytes()).hexdigest()
        combined.update(f"{path} {file_hash}\n".encode())
    return combined.hexdigest()


def list_deciding_files(package: Path) -> dict[str, Path]:
    """Return every file that decides a corpus, under its path relative to the package, sorted."""
    found = {}
    for file in (package / "data").rglob("*"):
        path = PurePosixPath(file.relative_to(package).as_posix())
        if file.suffix in CODE_SUFFIXES and file.is_file() and not _is_left_out(path):
            found[str(path)] = file
    return dict(sorted(found.items()))


def _is_left_out(path: PurePosixPath) -> bool:
    return any(path.is_relative_to(left_out) for left_out in LEFT_OUT)
