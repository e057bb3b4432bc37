"""`lora-sft train`: directly, or under accelerate, torchrun or deepspeed."""

from __future__ import annotations

import argparse

from lora_sft.cli.arguments import Commands, add_command, add_recipe


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
    from lora_sft.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, arguments.overrides)

    # torch is imported here, after a recipe that is right
    from lora_sft.pipeline import run_training
    from lora_sft.train.processes import Processes

    result = run_training(
        recipe,
        Processes.from_environment(),
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    return result.exit_code
