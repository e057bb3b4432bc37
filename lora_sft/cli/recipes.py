"""`lora-sft recipes`: the shelf of shipped recipes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from lora_sft.cli.arguments import Commands, Parser, add_command, add_json, print_json
from lora_sft.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command and its sub-command `copy`."""
    parser = add_command(commands, "recipes", list_shelf, "List the shipped recipes, or copy one.")
    add_json(parser)
    actions = parser.add_subparsers(title="commands", metavar="", parser_class=Parser)
    copy = add_command(actions, "copy", copy_one, "Copy the recipe NAME to FILE, to be edited.")
    copy.add_argument("name", metavar="NAME", help="a name from the list")
    copy.add_argument("file", metavar="FILE", help="where to; nothing is written over")


def list_shelf(arguments: argparse.Namespace) -> int:
    """Print name, method, model and hardware of every shipped recipe."""
    from lora_sft.recipe.catalogue import list_recipes

    shelf = list_recipes()
    if arguments.json:
        print_json([asdict(entry) for entry in shelf])
        return EXIT_DONE
    width = max((len(entry.name) for entry in shelf), default=0)
    for entry in shelf:
        print(f"{entry.name:<{width}}  {entry.method:<10} {entry.model}  ({entry.hardware})")
    return EXIT_DONE


def copy_one(arguments: argparse.Namespace) -> int:
    """Copy one recipe."""
    from lora_sft.recipe.catalogue import copy_recipe

    file = copy_recipe(arguments.name, arguments.file)
    print(f"{file}: edit it, then: lora-sft train {file}", file=sys.stderr)
    return EXIT_DONE
