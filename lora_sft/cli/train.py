"""`lora-sft train`: directly, or under accelerate, torchrun or deepspeed."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import Commands, add_command, add_recipe
from lora_sft.errors import EXIT_UNEXPECTED, LoraSftError

if TYPE_CHECKING:
    from lora_sft.processes.stop_signal import StopRequest


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        run,
        "Train a recipe; again, to go on with it.",
        "The same command goes on where an unfinished run stopped; a finished one is left alone.",
    )
    add_recipe(parser)
    parser.add_argument(
        "--resume",
        metavar="WHERE",
        default="auto",
        help="auto (default): go on if there is something; never: refuse to; or a checkpoint",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="give up the run in the output directory"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the contract's exit code."""
    from lora_sft.processes.outcome import leave_outcome
    from lora_sft.processes.stop_signal import Stopped, StopRequest

    with StopRequest().listening() as request:
        try:
            code = _run(arguments, request)
        except Stopped as stopped:
            code = stopped.exit_code
            leave_outcome(os.environ, code, was_told=_is_one_of_several())
            print(f"{stopped}; the same command goes on with the run", file=sys.stderr)
            _leave_at_once(code)
        except LoraSftError as error:
            leave_outcome(os.environ, error.exit_code)
            _leave_at_once(error.exit_code, str(error))
            raise
        except Exception:  # raised again: the launcher is told of the code before
            leave_outcome(os.environ, EXIT_UNEXPECTED)
            _leave_at_once(EXIT_UNEXPECTED, traceback.format_exc())
            raise
        leave_outcome(os.environ, code)
        return code


def _is_one_of_several() -> bool:
    """Read as it stands: this is asked after errors, of which a WORLD_SIZE that is none is one."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _leave_at_once(exit_code: int, last_words: str = "") -> None:
    """One of several processes ends here, without closing what it shares with the others.

    Closing waits for them, or aborts with another exit code; both hide the error.
    """
    if _is_one_of_several():
        print(last_words, file=sys.stderr, flush=True)
        os._exit(exit_code)


def _run(arguments: argparse.Namespace, request: StopRequest) -> int:
    from lora_sft.processes.world import check_world
    from lora_sft.recipe import read_recipe

    check_world(os.environ)
    recipe = read_recipe(arguments.recipe, arguments.overrides)

    # torch is imported here, after a recipe that is right
    from lora_sft.pipeline import run_training
    from lora_sft.processes.this_process import Processes

    result = run_training(
        recipe,
        Processes.from_environment(),
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        request=request,
    )
    return result.exit_code
