"""`lora-sft recipes`: the shelf of shipped recipes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from lora_sft.cli.arguments import AsJson, print_json


def register(app: typer.Typer) -> None:
    """Add the command and its sub-command."""
    shelf = typer.Typer(help="List the shipped recipes, or copy one.", rich_markup_mode=None)
    shelf.callback(invoke_without_command=True)(list_recipes)
    shelf.command("copy")(copy)
    app.add_typer(shelf, name="recipes")


def list_recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped recipes: name, model, method, hardware."""
    if context.invoked_subcommand is not None:
        return
    from lora_sft.recipe.catalogue import list_recipes as read_shelf

    shelf = read_shelf()
    if as_json:
        print_json([asdict(entry) for entry in shelf])
        return
    width = max((len(entry.name) for entry in shelf), default=0)
    for entry in shelf:
        typer.echo(f"{entry.name:<{width}}  {entry.method:<10} {entry.model}  ({entry.hardware})")


def copy(name: str, file: Path) -> None:
    """Copy the recipe NAME to FILE, to be edited."""
    from lora_sft.recipe.catalogue import copy_recipe

    copy_recipe(name, file)
    typer.echo(f"{file}: edit it, then: lora-sft train {file}", err=True)
