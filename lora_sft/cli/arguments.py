"""The parser, and the arguments that several commands share.

The commands use argparse and not typer. typer 0.29 imports pydantic when it reads an argument: a
recipe error would then appear after 0.31 CPU-seconds instead of 0.15.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lora_sft.shown_text import escape_json

Commands = Any  # the type of `add_subparsers`' result, which is private in argparse
Run = Callable[[argparse.Namespace], int]


class UsageError(Exception):
    """The command line has an unknown command or option, or lacks an argument."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError and accepts no abbreviated options.

    argparse itself would print the error and end the process.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError. `app.run` prints it like every other error."""
        raise UsageError(message.replace(", FIELD=VALUE", ""))


def add_command(commands: Commands, name: str, run: Run, summary: str, detail: str = "") -> Parser:
    """Add a command and return its parser. `run` is called with the parsed arguments.

    Args:
        commands: The commands so far.
        name: The name of the new command.
        run: The function that runs the command and returns its exit code.
        summary: One sentence for the list of commands.
        detail: More sentences for the help of this command.
    """
    parser: Parser = commands.add_parser(name, help=summary, description=f"{summary} {detail}")
    parser.set_defaults(run=run)
    return parser


def add_recipe(parser: Parser, *, optional: bool = False) -> None:
    """Add the arguments RECIPE and FIELD=VALUE, the overrides."""
    nargs = "?" if optional else None
    parser.add_argument("recipe", metavar="RECIPE", nargs=nargs, help="a recipe (YAML file)")
    parser.add_argument(
        "overrides",
        metavar="FIELD=VALUE",
        nargs="*",
        help="override a value of the recipe, such as train.learning_rate=1e-4",
    )


def add_json(parser: Parser) -> None:
    """Add the option `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON document on stdout"
    )


def add_trust(parser: Parser) -> None:
    """Add the option `--trust-remote-code`."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that come with the base model, with your rights; their names "
        "are printed; the model must be a local folder or have a fixed revision",
    )


def add_trust_checkpoint(parser: Parser) -> None:
    """Add the option `--trust-checkpoint`."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="continue from DeepSpeed states that you did not write; they are pickles, which can "
        "run code with your rights",
    )


def list_trust_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the recipe override that `--trust-remote-code` stands for, or nothing."""
    return ["model.trust_remote_code=true"] if arguments.trust_remote_code else []


def add_model_folder(parser: Parser) -> None:
    """Add the argument RUN|MODEL, the folder of the model to use."""
    parser.add_argument(
        "folder",
        metavar="RUN|MODEL",
        type=Path,
        help="a run directory, an adapter folder, or a model folder",
    )


def positive_integer(text: str) -> int:
    """Return the number that an argument gives.

    argparse shows the name of this function if the text is not a number.

    Raises: ArgumentTypeError if the number is less than 1.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    print(escape_json(json.dumps(document, indent=2, ensure_ascii=False)))
