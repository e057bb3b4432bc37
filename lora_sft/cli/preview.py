"""`lora-sft preview`: show which tokens of the data the model will learn."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from lora_sft.cli.arguments import Commands, add_command, add_recipe, positive_integer
from lora_sft.errors import EXIT_DONE, RecipeError
from lora_sft.log import make_result_console, say

if TYPE_CHECKING:
    from lora_sft.data.preview.shown_rows import Preview, PreviewSummary
    from lora_sft.recipe import Recipe

DEFAULT_ROWS = {"text": 3, "json": None, "html": 200}  # rows to show without --rows; None: all
LATER_DROPS = 100  # without --rows, a page also shows up to this many dropped rows after them


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "preview",
        run,
        "Show which tokens of the data the model will learn.",
        "Training uses exactly these rows and drops the same ones.",
    )
    add_recipe(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--rows",
        type=positive_integer,
        metavar="N",
        help="show the first N rows (default: 3 as text, 200 as html, all as json)",
    )
    which.add_argument(
        "--row",
        type=row_number,
        metavar="I",
        help="show only row I of its source, token by token; rows count from 0",
    )
    parser.add_argument(
        "--format",
        choices=tuple(DEFAULT_ROWS),
        default="text",
        help="text for the terminal (default), json for programs, html for a browser",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write to FILE instead of to stdout"
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        default="train",
        help="the rows to show (default: train)",
    )


def row_number(text: str) -> int:
    """Return the number of a row that an argument gives.

    argparse shows the name of this function if the text is not a number.

    Raises: ArgumentTypeError if the number is negative.
    """
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Show the rows in the format of `--format`."""
    from lora_sft.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    if arguments.out is not None:
        _check_is_writable(arguments.out)

    from lora_sft.data.preview.shown_rows import Selection, open_preview

    is_default = arguments.rows is None and arguments.row is None
    selection = Selection(
        split=arguments.split,
        num_rows=arguments.rows or DEFAULT_ROWS[arguments.format],
        row=arguments.row,
        num_later_drops=LATER_DROPS if arguments.format == "html" and is_default else 0,
    )
    preview = open_preview(recipe, selection)
    summary = WRITERS[arguments.format](preview, recipe, arguments)
    for warning in summary.warnings:
        say(f"warning: {warning}")
    return EXIT_DONE


def _print_text(preview: Preview, recipe: Recipe, arguments: argparse.Namespace) -> PreviewSummary:
    from lora_sft.cli.preview_text import PreviewPrinter, make_file_console

    if arguments.out is None:
        return PreviewPrinter(make_result_console(), preview).print()
    with _open_output(arguments.out) as file:
        return PreviewPrinter(make_file_console(file), preview).print()


def _write_json(preview: Preview, recipe: Recipe, arguments: argparse.Namespace) -> PreviewSummary:
    from lora_sft.data.preview.shown_rows import write_document

    with _open_output(arguments.out) as file:
        return write_document(preview, file)


def _write_page(preview: Preview, recipe: Recipe, arguments: argparse.Namespace) -> PreviewSummary:
    from lora_sft.data.preview.page import write_page

    with _open_output(arguments.out) as file:
        return write_page(
            preview, Path(arguments.recipe).name, recipe.model.model_name_or_path, file
        )


WRITERS = {"text": _print_text, "json": _write_json, "html": _write_page}


def _check_is_writable(out: Path) -> None:
    """Raise RecipeError if `out` cannot be written. This runs before any row is read."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise RecipeError(
            f"the folder {folder} does not exist", f"--out {out}", f"mkdir -p {folder}"
        )
    if out.is_dir():
        raise RecipeError(f"{out} is a folder", f"--out {out}", "give the name of a file")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise RecipeError(
            f"you may not write {out}", f"--out {out}", "give a file that you may write"
        )


@contextmanager
def _open_output(out: Path | None) -> Iterator[TextIO]:
    """Open a text file that is moved to `out`, or copied to stdout, when it is complete."""
    with _open_bytes(out) as binary:
        # UTF-8 cannot encode half a surrogate pair. It is written as an escape, as in JSON.
        text = io.TextIOWrapper(binary, "utf-8", errors="backslashreplace", newline="\n")
        yield text
        text.flush()
        text.detach()


@contextmanager
def _open_bytes(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            sys.stdout.flush()
            shutil.copyfileobj(spool, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    elif out.exists() and not out.is_file():  # a pipe or a device cannot be replaced by a file
        with out.open("wb") as file:
            yield file
    else:
        staged = out.with_name(f".{out.name}.{os.getpid()}.staged")
        try:
            with staged.open("wb") as file:
                yield file
            staged.replace(out)
        finally:
            staged.unlink(missing_ok=True)
