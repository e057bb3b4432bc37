"""Decide whether a link inside a folder leads out of it.

Somebody else may have made the folder, with a link such as `LICENSE -> ~/.ssh/id_rsa`. A program
that follows it puts a private file into what the user publishes.
"""

from __future__ import annotations

from pathlib import Path


def leads_outside(path: Path, folder: Path, *more_folders: Path) -> bool:
    """Return whether a path inside a folder is a file of another folder, through a link.

    In the hub's cache, a folder `snapshots/REVISION` consists of links into the folder `blobs`
    beside `snapshots`. Both belong to one model or data set.

    Args:
        path: A path inside the folder.
        folder: The folder.
        more_folders: Real folders that may hold the file too.
    """
    target, real = path.resolve(), folder.resolve()
    own = [real, *more_folders]
    if real.parent.name == "snapshots":
        own.append(real.parent.parent / "blobs")
    return not any(target.is_relative_to(each) for each in own)
