"""`lora-sft train`: directly, or under accelerate, torchrun or deepspeed."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_sft.cli.arguments import Overrides, RecipeArgument


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="auto, never, or the path of a checkpoint.", metavar="WHERE")
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Give up what the output directory holds.")
    ] = False,
) -> int:
    """Train a recipe; again, to go on with it.

    The same command goes on where an unfinished run stopped, and leaves a finished one alone.
    """
    from lora_sft.recipe import read_recipe

    resolved = read_recipe(recipe, overrides or ())

    from lora_sft.pipeline import Processes, run_training  # torch, after a recipe that is right

    result = run_training(
        resolved, Processes.from_environment(), resume=resume, overwrite=overwrite
    )
    return result.exit_code
