"""`lora-sft evaluate`: base and adapter side by side on rows that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_sft.cli.arguments import AsJson, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run, or a model folder.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Whose data and metrics to use; a run knows its own.")
    ] = None,
    split: Annotated[str, typer.Option(help="validation, test or train.")] = "validation",
    rows: Annotated[int | None, typer.Option(help="Only the first N rows.", metavar="N")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run or a model on held-out rows.

    A run is scored beside its own base.
    """
    from lora_sft.log import make_result_console
    from lora_sft.pipeline import run_evaluation

    evaluation = run_evaluation(run, recipe, split, rows)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        make_result_console().print(evaluation.to_table())
