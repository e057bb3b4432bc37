"""`lora-sft quickstart`: the whole way once, offline, on a CPU, in minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_sft.cli.arguments import Commands, add_command


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "quickstart",
        run,
        "Do the whole job once, offline, on a CPU.",
        "Trains, evaluates, merges and verifies on the model and data that ship with lora-sft.",
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, default=Path("quickstart"), help="where to"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the tour."""
    from lora_sft.quickstart.tour import run_quickstart

    return run_quickstart(arguments.folder)
