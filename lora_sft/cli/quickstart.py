"""`lora-sft quickstart`: train, evaluate and merge a small example, offline, on a CPU."""

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
        "Train, evaluate and merge a small example, offline, on a CPU.",
        "The model and the data ship with lora-sft. The command takes a few minutes.",
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=Path("quickstart"),
        help="the folder for the results (default: quickstart)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the quickstart."""
    from lora_sft.quickstart.tour import run_quickstart

    return run_quickstart(arguments.folder)
