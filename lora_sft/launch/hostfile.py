"""What DeepSpeed's launcher needs before it starts: a hostfile that it reads, and its programs."""

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
    """Its machines in order, and how many processes each has room for.

    Raises: RecipeError with the file and line.
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
            raise _refuse(f"{line!r} is not a machine and its slots", where)
        name, count = found[1], int(found[2])
        if name in slots:
            raise _refuse(f"{name} is there twice", where)
        slots[name] = count
    if not slots:
        raise _refuse("the hostfile names no machine", str(path))
    return slots


def check_room(slots: Mapping[str, int], world: World, path: Path) -> None:
    """Are the machines of a hostfile enough, and the first of them large enough?

    Raises: RecipeError with the file.
    """
    if len(slots) < world.nodes:
        raise _refuse(f"{len(slots)} machines for --nodes {world.nodes}", str(path))
    for name, count in islice(slots.items(), world.nodes):
        if count < world.gpus:
            raise _refuse(f"{name} has slots={count}, and --gpus is {world.gpus}", str(path))


def check_programs() -> None:
    """Raises: CapabilityError where DeepSpeed, ssh or pdsh is missing."""
    if importlib.util.find_spec("deepspeed") is None:
        raise CapabilityError(
            "DeepSpeed, whose launcher reads the hostfile, is not installed",
            "lora-sft launch --hostfile",
            "DS_BUILD_OPS=0 pip install 'lora-sft[deepspeed]', or run it on each machine with "
            "--rendezvous HOST:PORT",
        )
    for program in ("ssh", "pdsh"):
        if shutil.which(program) is None:
            raise CapabilityError(
                f"DeepSpeed's launcher needs {program}, and it is not on this machine",
                "lora-sft launch --hostfile",
                f"install {program}, or run it on each machine with --rendezvous HOST:PORT",
            )


def _refuse(what: str, where: str) -> RecipeError:
    fix = "one line for each machine, such as: node1 slots=8 (lora-sft launch --write makes one)"
    return RecipeError(what, where, fix)
