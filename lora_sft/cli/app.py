"""`lora-sft`: the commands, and what an error becomes at the end of the line.

Nothing heavy is imported at the top of any file of this room: `--help` and a recipe error
answer before torch would have been found on disk. Each command imports the pipeline inside.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Exit, TyperException

from lora_sft import __version__
from lora_sft.cli import chat, evaluate, merge, quickstart, recipes, show, train
from lora_sft.errors import EXIT_INTERRUPTED, EXIT_RECIPE, EXIT_UNEXPECTED, Fault, LoraSftError
from lora_sft.log import is_main_process

app = typer.Typer(
    name="lora-sft",
    help="Train LoRA and QLoRA adapters from one recipe, and prove every step on the way.",
    epilog="Start with: lora-sft quickstart",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for module in (quickstart, recipes, show, train, evaluate, merge, chat):
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lora-sft {__version__}")
        raise Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
    local_rank: Annotated[
        int | None,
        typer.Option("--local_rank", "--local-rank", hidden=True, help="Set by `deepspeed`."),
    ] = None,
) -> None:
    """Take what comes before the command; `deepspeed --module` puts the rank there."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with the contract's exit code."""
    _settle_libraries()
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def _settle_libraries() -> None:
    """What the libraries read from the environment at import; a user's own setting wins."""
    # No telemetry: TRL pings the hub from its trainer unless told not to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Bars are for a person at a terminal; in a log file each becomes a hundred lines.
    if not (sys.stderr.isatty() and is_main_process()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # transformers 5.23 calls its own deprecated name; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; every error is printed as what, where, fix."""
    try:
        result = app(args=arguments, prog_name="lora-sft", standalone_mode=False)
        return int(result or 0)
    except LoraSftError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except TyperException as error:  # an unknown command or option
        where = f"lora-sft {' '.join(arguments)}"
        print(Fault(error.format_message(), where, "see lora-sft --help"), file=sys.stderr)
        return EXIT_RECIPE
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:  # the last door: what nobody foresaw is shown whole
        traceback.print_exc()
        what = f"unexpected {type(error).__name__}: {error}"
        print(Fault(what, "above", "please report it with the lines above"), file=sys.stderr)
        return EXIT_UNEXPECTED
