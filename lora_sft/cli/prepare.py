"""`lora-sft prepare`: tokenise the data of a recipe into the cache, before training starts."""

from __future__ import annotations

import argparse

from lora_sft.cli.arguments import Commands, add_command, add_json, add_recipe, print_json
from lora_sft.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "prepare",
        run,
        "Tokenise the data of a recipe into the cache.",
        "Training on the same data then reads the tokens from the cache, in every process.",
    )
    add_recipe(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tokenise the data and print the counts of rows and the folder in the cache."""
    from lora_sft.data.corpus.account_table import show_accounts
    from lora_sft.data.corpus.loading import prepare_data
    from lora_sft.log import say
    from lora_sft.recipe import read_recipe

    prepared = prepare_data(read_recipe(arguments.recipe, arguments.overrides))
    show_accounts(prepared.corpus)
    if arguments.json:
        accounts = prepared.corpus.accounts
        print_json(
            {
                "cache": str(prepared.folder or ""),
                "hit": prepared.is_hit,
                "account": {name: each.as_dict() for name, each in accounts.items()},
            }
        )
        return EXIT_DONE
    if prepared.folder is None:
        say(f"the tokens are not in the cache: {prepared.reason}")
    else:
        say(f"{'already in the cache' if prepared.is_hit else 'cached in'}: {prepared.folder}")
    return EXIT_DONE
