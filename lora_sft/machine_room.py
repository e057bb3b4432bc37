"""Check before a merge that this machine has enough free disk space and memory for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lora_sft.errors import CapabilityError


def check_free_disk(output: Path, needed_bytes: int) -> None:
    """Check the free space on the disk of `output`.

    Raises: CapabilityError if it is less than `needed_bytes`.
    """
    folder = next(each for each in (output.absolute(), *output.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise CapabilityError(
            f"too little disk space: {needed_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            str(folder),
            "free disk space, or give an output on another disk",
        )


def check_free_memory(needed_bytes: int) -> None:
    """Check the free memory.

    Raises: CapabilityError if it is less than `needed_bytes`.
    """
    free = find_free_memory()
    if needed_bytes > free:
        raise CapabilityError(
            f"too little memory: {needed_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            "the largest quantised tensor",
            "merge on a machine with more memory, or add --onto original",
        )


def find_free_memory() -> float:
    """Return the free memory in bytes: that of the machine, or of its container if it is less."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        free = float(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, float(text) - float(used.read_text()))
    return free
