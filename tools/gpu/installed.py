"""Unpack a tree of wheels into a folder for PYTHONPATH, without pip and without a network.

The wheels were cut and chosen for one host when they were packed, so nothing is left to resolve:
a wheel is a zip whose members lie where they belong, but for those below `NAME.data/`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

SHARED_LIST = "shared.txt"  # wheels of another tree that belong to this one, a relative path a line
STAMP = ".installed_wheels"
_UNFINISHED = "unfinished"
_DATA_MEMBER = re.compile(r"^[^/]+\.data/(?P<kind>[^/]+)/(?P<path>.+)$")


def install(tree: Path, site: Path) -> None:
    """Unzip every wheel of `tree` into `site`; nothing to do where they are there already.

    Raises: FileNotFoundError where the tree has no wheel; FileExistsError where `site` holds
    something that was not unpacked by this function.
    """
    wheels = list_wheels(tree)
    if not wheels:
        raise FileNotFoundError(
            f"no wheel in {tree}: run tools/gpu/pack.py where there is a network"
        )
    stamp, wanted = site / STAMP, describe(wheels)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    _make_empty(site)
    stamp.write_text(_UNFINISHED)
    for wheel in wheels:
        unpack(wheel, site)
    stamp.write_text(wanted)


def list_wheels(tree: Path) -> list[Path]:
    """The wheels in a tree's folder and those it shares with another, in order of their names."""
    shared = tree / SHARED_LIST
    lines = shared.read_text().split() if shared.exists() else []
    return sorted(
        [*tree.glob("*.whl"), *(tree / line for line in lines)], key=lambda path: path.name
    )


def describe(wheels: list[Path]) -> str:
    """One line a wheel, with the SHA-256 of its content: equal text, equal installation."""
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in wheels)
    return "".join(lines)


def unpack(wheel: Path, site: Path) -> None:
    """Unzip one wheel: its libraries into `site`, its scripts and headers nowhere."""
    with zipfile.ZipFile(wheel) as archive:
        for member, path in _find_places(archive):
            member.filename = path
            archive.extract(member, site)


def list_library_folders(site: Path) -> list[Path]:
    """Folders for LD_LIBRARY_PATH: shared libraries that a wheel brings for another to link to."""
    return sorted({path.parent for path in (site / "nvidia").glob("*/lib/*.so*")})


def _find_places(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Each file that is installed, and its path below the site folder."""
    for member in archive.infolist():
        data = _DATA_MEMBER.match(member.filename)
        if member.is_dir() or (data and data["kind"] not in ("purelib", "platlib")):
            continue
        yield member, data["path"] if data else member.filename


def _make_empty(site: Path) -> None:
    """Take away an older installation, and nothing else."""
    if site.is_dir() and any(site.iterdir()):
        if not (site / STAMP).exists():
            raise FileExistsError(f"{site} holds something else; name an empty folder")
        shutil.rmtree(site)
    site.mkdir(parents=True, exist_ok=True)
