"""Arguments that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides: train.learning_rate=1e-4"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def print_json(document: Any) -> None:
    """Put exactly one JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
