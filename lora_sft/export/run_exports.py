"""Run the `export` section of a recipe after its training: merge the adapter and push it."""

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
    """Check before training that the exports are possible, so that they do not fail hours later.

    Args:
        recipe: The recipe whose `export` section is checked.
        run: The run that will export. It may replace its own earlier merge.
        run_id: The id that a merge of this run has.
        processes: Only the main process contacts the hub.

    Raises:
        ExportError: If the merge's output exists, or the repository name is not valid.
        CapabilityError: If the hub cannot be reached or refuses the token.
    """
    wanted = recipe.export
    if wanted.merge is not None:
        check_output_is_free(Path(wanted.merge), Owner(run_id, run.path))
    if wanted.push_to_hub is not None and processes.is_main:
        check_can_push(wanted.push_to_hub, recipe.where("export.push_to_hub"))


def export_run(recipe: Recipe, run: RunDirectory, run_id: str) -> None:
    """Merge the adapter into its base model and push the result, if the recipe asks for it."""
    wanted = recipe.export
    if wanted.merge is not None:
        plan = make_merge_plan(
            run.path,
            Path(wanted.merge),
            owner=Owner(run_id, run.path),
            trust_remote_code=recipe.model.trust_remote_code,
        )
        merge(plan)
    if wanted.push_to_hub is not None:
        push_folder(Path(wanted.merge) if wanted.merge else run.adapter, wanted.push_to_hub)
