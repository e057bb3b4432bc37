"""Arguments that several commands share, so that they read and mean the same everywhere.

argparse, not typer: typer 0.29 imports pydantic as soon as it reads one argument, and a recipe
error would answer in 0.31 CPU-seconds instead of 0.15.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Commands = Any  # argparse's type of "the sub-commands" is private
Run = Callable[[argparse.Namespace], int]


class UsageError(Exception):
    """The command line itself is wrong: an unknown command or option, a missing argument."""


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of ending the process, and accepts no abbreviated option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError, printed by `app` like every other error."""
        raise UsageError(message.replace(", FIELD=VALUE", ""))


def add_command(commands: Commands, name: str, run: Run, summary: str, detail: str = "") -> Parser:
    """A parser for the command `name`, which `run` carries out."""
    parser: Parser = commands.add_parser(name, help=summary, description=f"{summary} {detail}")
    parser.set_defaults(run=run)
    return parser


def add_recipe(parser: Parser, *, optional: bool = False) -> None:
    """RECIPE, followed by any number of overrides (also after options)."""
    nargs = "?" if optional else None
    parser.add_argument("recipe", metavar="RECIPE", nargs=nargs, help="the recipe, a YAML file")
    parser.add_argument(
        "overrides",
        metavar="FIELD=VALUE",
        nargs="*",
        help="overrides, such as train.learning_rate=1e-4",
    )


def add_json(parser: Parser) -> None:
    """`--json`: one document for programs."""
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def add_model_folder(parser: Parser) -> None:
    """RUN|MODEL: what can answer."""
    parser.add_argument(
        "folder",
        metavar="RUN|MODEL",
        type=Path,
        help="a run directory, an adapter folder, or a model folder",
    )


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def print_json(document: Any) -> None:
    """Put exactly one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))
