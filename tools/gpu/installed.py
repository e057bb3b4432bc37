"""Unpack a tree of wheels into a folder for PYTHONPATH, without pip and without a network.

pack.py has already chosen the wheels for the host, so no dependencies are resolved here. A wheel is
a zip file. Its files already have the right paths, except those below `NAME.data/`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

SHARED_LIST = "shared.txt"  # lists wheels of another tree, one relative path per line
STAMP = ".installed_wheels"
_UNFINISHED = "unfinished"
_DATA_MEMBER = re.compile(r"^[^/]+\.data/(?P<kind>[^/]+)/(?P<path>.+)$")


def install(tree: Path, site: Path) -> None:
    """Unpack every wheel of `tree` into `site`. Do nothing if the same wheels are unpacked there.

    Raises: FileNotFoundError if the tree has no wheel; FileExistsError if `site` holds files that
        this function did not write.
    """
    wheels = list_wheels(tree)
    if not wheels:
        raise FileNotFoundError(
            f"no wheel in {tree}: run tools/gpu/pack.py on a machine with a network"
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
    """Return the wheels of a tree, with those shared from another tree, sorted by name."""
    shared = tree / SHARED_LIST
    lines = shared.read_text().split() if shared.exists() else []
    return sorted(
        [*tree.glob("*.whl"), *(tree / line for line in lines)], key=lambda path: path.name
    )


def describe(wheels: list[Path]) -> str:
    """Return one line per wheel with its SHA-256. Equal text means an equal installation."""
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in wheels)
    return "".join(lines)


def unpack(wheel: Path, site: Path) -> None:
    """Unpack the libraries of one wheel into `site`, without scripts and headers."""
    with zipfile.ZipFile(wheel) as archive:
        for member, path in _find_places(archive):
            member.filename = path
            archive.extract(member, site)


def list_library_folders(site: Path) -> list[Path]:
    """Return the folders for LD_LIBRARY_PATH. They hold NVIDIA's shared libraries from wheels."""
    return sorted({path.parent for path in (site / "nvidia").glob("*/lib/*.so*")})


def _find_places(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Yield each file to unpack, with its path below the site folder."""
    for member in archive.infolist():
        data = _DATA_MEMBER.match(member.filename)
        if member.is_dir() or (data and data["kind"] not in ("purelib", "platlib")):
            continue
        yield member, data["path"] if data else member.filename


def _make_empty(site: Path) -> None:
    """Remove an older installation and make an empty folder. Refuse to remove other files."""
    if site.is_dir() and any(site.iterdir()):
        if not (site / STAMP).exists():
            raise FileExistsError(f"{site} holds other files; give an empty folder")
        shutil.rmtree(site)
    site.mkdir(parents=True, exist_ok=True)
