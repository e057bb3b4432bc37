"""`lora-sft show`: print the resolved recipe and where each value was set."""

from __future__ import annotations

import argparse

from lora_sft.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    add_json,
    add_recipe,
    print_json,
)
from lora_sft.errors import EXIT_DONE
from lora_sft.log import print_result


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "show",
        run,
        "Print the resolved recipe and where each value was set.",
        "Each line ends with the file and line that set the value, or with `command line` or "
        "`default`.",
    )
    add_recipe(parser, optional=True)
    add_json(parser)
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of recipes, for editors"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the recipe or the schema."""
    from lora_sft.recipe import read_recipe, recipe_json_schema

    if arguments.schema:
        print_json(recipe_json_schema())
        return EXIT_DONE
    if arguments.recipe is None:
        raise UsageError("a RECIPE or --schema is required")
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    if arguments.json:
        print_json({"recipe": recipe.to_dict(), "origins": recipe.origins})
    else:
        print_result(recipe.annotated_text())
    return EXIT_DONE
