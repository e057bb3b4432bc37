"""Remove files from a wheel that a GPU host does not need, such as libraries for other devices.

A wheel is a zip file, so it is written again without these files. The metadata always stays,
because libraries read each other's versions from it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

_METADATA = re.compile(r"^[^/]+\.dist-info/")


def is_dropped(member: str, drop: Sequence[str], keep: Sequence[str] = ()) -> bool:
    """Return whether a file is removed: it matches `drop`, not `keep`, and is not metadata."""
    if _METADATA.match(member) or any(fnmatchcase(member, pattern) for pattern in keep):
        return False
    return any(fnmatchcase(member, pattern) for pattern in drop)


def trim(source: Path, target: Path, drop: Sequence[str], keep: Sequence[str] = ()) -> int:
    """Write the wheel `source` to `target` without the removed files. Return their number.

    `target` appears only when it is complete, so an interruption leaves no partial wheel.
    """
    unfinished = target.with_suffix(".unfinished")
    dropped = 0
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(unfinished, "w") as new:
        for member in old.infolist():
            if is_dropped(member.filename, drop, keep):
                dropped += 1
                continue
            new.writestr(member, old.read(member), zipfile.ZIP_DEFLATED, compresslevel=9)
    unfinished.replace(target)
    return dropped
