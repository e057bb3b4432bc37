"""Decide whether a link inside a folder leads out of it.

Somebody else may have made the folder, with a link such as `LICENSE -> ~/.ssh/id_rsa`. A program
that follows it puts a private file into what the user publishes, or trains on it.
"""

from __future__ import annotations

from pathlib import Path

SNAPSHOTS, BLOBS = "snapshots", "blobs"


def leads_outside(path: Path, folder: Path) -> bool:
    """Return whether a path inside a folder is a file outside of it, through a link.

    In the hub's cache, a folder `snapshots/REVISION` consists of links into the folder `blobs`
    beside `snapshots`. Both belong to one model or data set.

    Args:
        path: A path inside the folder.
        folder: The folder. It may itself be a link.
    """
    target, real = path.resolve(), folder.resolve()
    blobs = [each.parent / BLOBS for each in real.parents if each.name == SNAPSHOTS]
    return not any(target.is_relative_to(each) for each in (real, *blobs))
