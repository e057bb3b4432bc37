"""`lora-sft evaluate`: base and adapter side by side on rows that training never saw."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_sft.cli.arguments import (
    Commands,
    add_command,
    add_json,
    add_model_folder,
    positive,
    print_json,
)
from lora_sft.errors import EXIT_DONE


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        "Score a run or a model on held-out rows.",
        "A run is scored beside its own base; a model needs the recipe whose rows to use.",
    )
    add_model_folder(parser)
    parser.add_argument("--recipe", type=Path, help="whose data and metrics to use")
    parser.add_argument("--split", choices=("validation", "test", "train"), default="validation")
    parser.add_argument("--rows", type=positive, metavar="N", help="only the first N rows")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the scores."""
    from lora_sft.evaluate.run_evaluation import run_evaluation
    from lora_sft.log import make_result_console

    evaluation = run_evaluation(arguments.folder, arguments.recipe, arguments.split, arguments.rows)
    if arguments.json:
        print_json(evaluation.to_dict())
    else:
        make_result_console().print(evaluation.to_table())
    return EXIT_DONE
