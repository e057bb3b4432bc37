"""Check what DeepSpeed's launcher needs: a valid hostfile, and the programs that it runs."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from lora_sft.errors import CapabilityError, RecipeError
from lora_sft.launch.commands import World

LINE = re.compile(r"(\S+)\s+slots=(\d+)")  # as deepspeed.launcher.runner reads it


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the machines of a hostfile in order, and the number of slots of each.

    Raises: RecipeError with the file and line if a line cannot be read.
    """
    slots: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse(f"the hostfile cannot be read: {error}", str(path)) from error
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found, where = LINE.match(line), f"{path}:{number}"
        if found is None:
            raise _refuse(f"{line!r} is not a machine name and its slots", where)
        name, count = found[1], int(found[2])
        if name in slots:
            raise _refuse(f"{name} is listed twice", where)
        slots[name] = count
    if not slots:
        raise _refuse("the hostfile names no machine", str(path))
    return slots


def check_room(slots: Mapping[str, int], world: World, path: Path) -> None:
    """Check that a hostfile has enough machines and slots.

    Raises: RecipeError with the file if it has too few.
    """
    if len(slots) < world.nodes:
        what = f"the hostfile has fewer machines ({len(slots)}) than --nodes ({world.nodes})"
        raise _refuse(what, str(path))
    for name, count in islice(slots.items(), world.nodes):
        if count < world.gpus:
            raise _refuse(f"{name} has slots={count}, but --gpus is {world.gpus}", str(path))


def check_programs() -> None:
    """Check that DeepSpeed, ssh and pdsh are installed.

    Raises: CapabilityError if one of them is missing.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise CapabilityError(
            "--hostfile needs DeepSpeed's launcher, and DeepSpeed is not installed",
            "lora-sft launch --hostfile",
            "install it: DS_BUILD_OPS=0 pip install 'lora-sft[deepspeed]'; or run lora-sft launch "
            "on each machine with --rendezvous HOST:PORT",
        )
    for program in ("ssh", "pdsh"):
        if shutil.which(program) is None:
            raise CapabilityError(
                f"DeepSpeed's launcher needs {program}, which is not installed on this machine",
                "lora-sft launch --hostfile",
                f"install {program}, or run lora-sft launch on each machine with "
                "--rendezvous HOST:PORT",
            )


def _refuse(what: str, where: str) -> RecipeError:
    fix = "write one line per machine, such as: node1 slots=8 (lora-sft launch --write makes one)"
    return RecipeError(what, where, fix)
