"""`lora-sft preview`: what the model will and will not learn, token by token."""

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

from lora_sft.cli.arguments import Commands, add_command, add_recipe, positive
from lora_sft.errors import EXIT_DONE, RecipeError
from lora_sft.log import make_result_console, say

if TYPE_CHECKING:
    from lora_sft.data.preview.shown_rows import Preview, PreviewSummary
    from lora_sft.recipe import Recipe

SHOWN_ROWS = {"text": 3, "json": None, "html": 200}  # unless --rows says otherwise; None: all
LATER_DROPS = 100  # beside the rows of a page, unless --rows says how many there are to be


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "preview",
        run,
        "Show what the model will and will not learn, token by token.",
        "The rows, drops and counts are those of training.",
    )
    add_recipe(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--rows", type=positive, metavar="N", help="the first N rows (text 3, html 200, json all)"
    )
    which.add_argument(
        "--row", type=_from_zero, metavar="I", help="only row I of its source, counted from 0"
    )
    parser.add_argument("--format", choices=tuple(SHOWN_ROWS), default="text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there, not to stdout")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train")


def _from_zero(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Show the rows in the wanted form."""
    from lora_sft.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    if arguments.out is not None:
        _check_can_be_written(arguments.out)

    from lora_sft.data.preview.shown_rows import Selection, open_preview

    is_default = arguments.rows is None and arguments.row is None
    selection = Selection(
        split=arguments.split,
        num_rows=arguments.rows or SHOWN_ROWS[arguments.format],
        row=arguments.row,
        num_later_drops=LATER_DROPS if arguments.format == "html" and is_default else 0,
    )
    preview = open_preview(recipe, selection)
    summary = SHOW[arguments.format](preview, recipe, arguments)
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


SHOW = {"text": _print_text, "json": _write_json, "html": _write_page}


def _check_can_be_written(out: Path) -> None:
    """Raises: RecipeError, before any row is read."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise RecipeError(f"no such folder: {folder}", f"--out {out}", f"mkdir -p {folder}")
    if out.is_dir():
        raise RecipeError("that is a folder", f"--out {out}", "name a file in it")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise RecipeError("it cannot be written", f"--out {out}", "name a file that you may write")


@contextmanager
def _open_output(out: Path | None) -> Iterator[TextIO]:
    """A file whose text reaches `out`, or stdout, only once it is whole."""
    with _open_bytes(out) as binary:
        # Half a surrogate pair is written as JSON would escape it, and fails no output.
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
    elif out.exists() and not out.is_file():  # a pipe or a device takes what comes
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
