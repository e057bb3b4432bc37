"""`lora-sft train`: train a recipe, alone or as a process of accelerate, torchrun or deepspeed."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import (
    Commands,
    add_command,
    add_recipe,
    add_trust,
    add_trust_checkpoint,
    list_trust_overrides,
)
from lora_sft.errors import EXIT_UNEXPECTED, LoraSftError
from lora_sft.log import format_traceback

if TYPE_CHECKING:
    from lora_sft.processes.stop_signal import StopRequest


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        run,
        "Train a recipe, or continue its unfinished run.",
        "The same command continues an unfinished run from its last checkpoint. A finished run is "
        "not changed.",
    )
    add_recipe(parser)
    parser.add_argument(
        "--resume",
        metavar="WHERE",
        default="auto",
        help="auto (default): continue the run in output_dir. never: refuse to start if output_dir "
        "holds this run. The folder of a checkpoint: continue from this checkpoint",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what earlier runs wrote into output_dir, and train from step 0",
    )
    add_trust(parser)
    add_trust_checkpoint(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train a recipe and return the exit code."""
    from lora_sft.processes.outcome import leave_outcome
    from lora_sft.processes.stop_signal import Stopped, StopRequest

    with StopRequest().listening() as request:
        try:
            code = _run(arguments, request)
        except Stopped as stopped:
            code = stopped.exit_code
            leave_outcome(os.environ, code, was_told=_is_distributed())
            print(f"{stopped}; the same command continues the run", file=sys.stderr)
            _exit_at_once_if_distributed(code)
        except LoraSftError as error:
            leave_outcome(os.environ, error.exit_code)
            _exit_at_once_if_distributed(error.exit_code, str(error))
            raise
        except Exception:
            leave_outcome(os.environ, EXIT_UNEXPECTED)
            _exit_at_once_if_distributed(EXIT_UNEXPECTED, format_traceback())
            raise
        leave_outcome(os.environ, code)
        return code


def _is_distributed() -> bool:
    """Return whether a launcher started several processes.

    `WORLD_SIZE` may be invalid here, because this function also runs after that error. So its text
    is compared and not parsed.
    """
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _exit_at_once_if_distributed(exit_code: int, message: str = "") -> None:
    """End this process now if it is one of several. Do not close the process group first.

    Closing it would wait for the other processes or end with another exit code. Both would hide
    the error.
    """
    if _is_distributed():
        print(message, file=sys.stderr, flush=True)
        os._exit(exit_code)


def _run(arguments: argparse.Namespace, request: StopRequest) -> int:
    from lora_sft.processes.world import check_world
    from lora_sft.recipe import read_recipe

    check_world(os.environ)
    overrides = [*arguments.overrides, *list_trust_overrides(arguments)]
    recipe = read_recipe(arguments.recipe, overrides)

    # Imported late because these import torch. An error in the recipe must appear at once.
    from lora_sft.pipeline import run_training
    from lora_sft.processes.this_process import Processes

    result = run_training(
        recipe,
        Processes.from_environment(),
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        trust_checkpoint=arguments.trust_checkpoint,
        request=request,
    )
    return result.exit_code
