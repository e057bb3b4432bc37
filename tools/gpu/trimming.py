"""Cut out of a wheel what a GPU host does not need: libraries for other devices, a web app.

A wheel is a zip, so cutting is writing it anew without some members. Its metadata always stays,
because libraries ask for each other's versions through it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

_METADATA = re.compile(r"^[^/]+\.dist-info/")


def is_dropped(member: str, drop: Sequence[str], keep: Sequence[str] = ()) -> bool:
    """Whether a member goes: it matches `drop`, does not match `keep`, and is no metadata."""
    if _METADATA.match(member) or any(fnmatchcase(member, pattern) for pattern in keep):
        return False
    return any(fnmatchcase(member, pattern) for pattern in drop)


def trim(source: Path, target: Path, drop: Sequence[str], keep: Sequence[str] = ()) -> int:
    """Write `source` to `target` without its dropped members; how many those were.

    The target appears whole or not at all, so that an interrupted packing leaves no half wheel.
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
