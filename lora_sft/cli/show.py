"""`lora-sft show`: the resolved recipe, and who set each value."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_sft.cli.arguments import AsJson, Overrides, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("show")(show)


def show(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="The recipe.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="The JSON Schema of recipes, for editors.")
    ] = False,
) -> None:
    """Print the resolved recipe and who set each value.

    Behind each value stands its file:line, `command line` or `default`.
    """
    from lora_sft.recipe import read_recipe, recipe_json_schema

    if schema:
        print_json(recipe_json_schema())
        return
    if recipe is None:
        raise typer.BadParameter("give a RECIPE, or --schema")
    resolved = read_recipe(recipe, overrides or ())
    if as_json:
        print_json({"recipe": resolved.to_dict(), "origins": dict(resolved.origins)})
        return
    typer.echo(resolved.annotated_text())
