"""Do what a recipe's `export` section asks for when its training is complete: merge, and push."""

from __future__ import annotations

from pathlib import Path

from lora_sft.export.hub import check_can_push, push_folder
from lora_sft.export.merge_plan import make_merge_plan
from lora_sft.export.merging import merge
from lora_sft.export.staging import Owner, check_output_is_free
from lora_sft.processes.this_process import Processes
from lora_sft.recipe import Recipe
from lora_sft.run_directory import RunDirectory


def check_exports(recipe: Recipe, run: RunDirectory, run_id: str, processes: Processes) -> None:
    """Check before training that the exports can be made: a fault must not show after hours.

    Args:
        recipe: Its `export` section is checked.
        run: The run that exports; it may replace its own older merge.
        run_id: What the run's own merge is known by.
        processes: Only the main process asks the hub.

    Raises: ExportError if the merge's output is in use, or the hub refuses the upload.
    """
    wanted = recipe.export
    if wanted.merge is not None:
        check_output_is_free(Path(wanted.merge), Owner(run_id, run.path))
    if wanted.push_to_hub is not None and processes.is_main:
        check_can_push(wanted.push_to_hub, recipe.where("export.push_to_hub"))


def export_run(recipe: Recipe, run: RunDirectory, run_id: str) -> None:
    """Merge the adapter into its base and push it to the hub (private), where asked for."""
    wanted = recipe.export
    if wanted.merge is not None:
        merge(make_merge_plan(run.path, Path(wanted.merge), owner=Owner(run_id, run.path)))
    if wanted.push_to_hub is not None:
        push_folder(Path(wanted.merge) if wanted.merge else run.adapter, wanted.push_to_hub)
