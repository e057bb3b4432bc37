"""`lora-sft quickstart`: the whole way once, offline, on a CPU, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quickstart")(quickstart)


def quickstart(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write.")] = Path(
        "quickstart"
    ),
) -> int:
    """Do the whole job once, offline, on a CPU.

    Trains, evaluates, merges and verifies on the model and data that ship with lora-sft.
    """
    from lora_sft.quickstart.tour import run_quickstart

    return run_quickstart(folder)
