"""`lora-sft evaluate`: score the base model and the adapter on the same held-out rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_sft.cli.arguments import (
    Commands,
    add_command,
    add_json,
    add_model_folder,
    add_trust,
    list_trust_overrides,
    positive_integer,
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
        "For a run, the base model and the adapter are scored on the same rows. A model folder "
        "needs --recipe, which names the rows.",
    )
    add_model_folder(parser)
    parser.add_argument(
        "--recipe",
        type=Path,
        help="use the data and the metrics of this recipe (default: the run's own recipe)",
    )
    parser.add_argument(
        "--split",
        choices=("validation", "test", "train"),
        default="validation",
        help="the rows to score (default: validation)",
    )
    parser.add_argument(
        "--rows", type=positive_integer, metavar="N", help="score only the first N rows"
    )
    add_trust(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score the base model and the adapter (or the model), print the scores, and return 0."""
    from lora_sft.evaluate.run_evaluation import run_evaluation
    from lora_sft.log import make_result_console

    evaluation = run_evaluation(
        arguments.folder,
        arguments.recipe,
        arguments.split,
        arguments.rows,
        overrides=list_trust_overrides(arguments),
    )
    if arguments.json:
        print_json(evaluation.to_dict())
    else:
        make_result_console().print(evaluation.to_table())
    return EXIT_DONE
