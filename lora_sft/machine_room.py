"""Whether this machine has the room for a merge: known before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lora_sft.errors import CapabilityError


def check_disk_room(output: Path, needed_bytes: int) -> None:
    """Raises: CapabilityError where the disk of `output` has too little room."""
    folder = next(each for each in (output.absolute(), *output.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise CapabilityError(
            f"too little disk: {needed_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            str(folder),
            "free some, or give an output on another disk",
        )


def check_memory_room(needed_bytes: int) -> None:
    """Raises: CapabilityError where less memory is free."""
    free = find_free_memory()
    if needed_bytes > free:
        raise CapabilityError(
            f"too little memory: {needed_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
            "the largest quantised tensor",
            "merge on a larger machine, or --onto original",
        )


def find_free_memory() -> float:
    """Bytes that this process may still take: the machine's, or its container's where less."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        free = float(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, float(text) - float(used.read_text()))
    return free
