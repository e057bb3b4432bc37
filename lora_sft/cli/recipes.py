"""`lora-sft recipes`: list the shipped recipes, or copy one."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lora_sft.cli.arguments import Commands, Parser, add_command, add_json, print_json
from lora_sft.errors import EXIT_DONE
from lora_sft.log import print_result, say


def add_parser(commands: Commands) -> None:
    """Add the command and its sub-command `copy`."""
    parser = add_command(
        commands, "recipes", print_recipes, "List the shipped recipes, or copy one."
    )
    add_json(parser)
    actions = parser.add_subparsers(title="commands", metavar="", parser_class=Parser)
    copy = add_command(
        actions, "copy", copy_shipped_recipe, "Copy a shipped recipe to a file that you can edit."
    )
    copy.add_argument("name", metavar="NAME", help="a name that lora-sft recipes lists")
    copy.add_argument("file", metavar="FILE", help="the file to write; it must not exist")


def print_recipes(arguments: argparse.Namespace) -> int:
    """Print the name, method, model and hardware of every shipped recipe."""
    from lora_sft.recipe.catalogue import list_recipes

    recipes = list_recipes()
    if arguments.json:
        print_json([asdict(entry) for entry in recipes])
        return EXIT_DONE
    width = max((len(entry.name) for entry in recipes), default=0)
    for entry in recipes:
        print_result(f"{entry.name:<{width}}  {entry.method:<10} {entry.model}  ({entry.hardware})")
    return EXIT_DONE


def copy_shipped_recipe(arguments: argparse.Namespace) -> int:
    """Copy a shipped recipe and print the next step."""
    from lora_sft.recipe.catalogue import copy_recipe

    file = copy_recipe(arguments.name, arguments.file)
    say(f"edit {file}, then run: lora-sft train {file}")
    return EXIT_DONE
