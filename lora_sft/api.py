"""The Python interface: functions that do the work of the commands and return records.

`lora_sft` exports these functions. This file imports no torch: each function imports what it needs
when it is called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_sft.errors import CapabilityError
from lora_sft.hub_kernels import without_hub_kernels

if TYPE_CHECKING:
    from lora_sft.data.preview.shown_rows import Preview
    from lora_sft.evaluate.scoring import Evaluation
    from lora_sft.export.merging import MergeReport
    from lora_sft.recipe import Recipe
    from lora_sft.train.fit import TrainResult

Split = Literal["train", "validation", "test"]


@without_hub_kernels()
def train_recipe(
    recipe: Recipe, *, resume: str | Path = "auto", overwrite: bool = False
) -> TrainResult:
    """Train a recipe, as `lora-sft train` does.

    Signals are handled as in the command: after SIGTERM, SIGUSR1 or Ctrl-C the run saves its state
    at the end of the step and stops.

    Args:
        recipe: The recipe, from `read_recipe`.
        resume: `auto` continues an unfinished run of the same recipe. `never` raises RecipeError if
            the output directory holds this run. A path is a checkpoint to continue from.
        overwrite: Delete what earlier runs wrote into the output directory first.

    Returns: The last step, the exit code, and the reason if the run was stopped.

    Raises:
        RecipeError: If the recipe is wrong, or the output directory holds another run or files
            that no run wrote.
        DataError: If the rows cannot be read, or every row is dropped.
        ModelError: If the model cannot be loaded, or the recipe does not fit it.
        CapabilityError: If this machine cannot do what the recipe asks for.
        TrainingError: If training fails. The last checkpoint stays on disk.
        ExportError: If the merge that the recipe asks for fails.
    """
    from lora_sft.processes.world import check_world

    check_world(os.environ)

    from lora_sft.pipeline import run_training
    from lora_sft.processes.this_process import Processes

    return run_training(
        recipe, Processes.from_environment(), resume=str(resume), overwrite=overwrite
    )


@without_hub_kernels()
def evaluate_run(
    run: str | Path, *, split: Split | None = None, against: str | Path | None = None
) -> Evaluation:
    """Score the base and the adapter of a run on held-out rows, as `lora-sft evaluate` does.

    Args:
        run: A run directory.
        split: The rows to score; None: `test` if the recipe has one, else `validation`.
        against: Must be None. Two runs cannot be compared yet.

    Raises:
        RecipeError: If the recipe has no such split.
        ModelError: If there is no run, or its training is not finished.
        CapabilityError: If `against` is not None.
    """
    if against is not None:
        raise CapabilityError(
            "two runs cannot be compared yet",
            f"evaluate_run(against={str(against)!r})",
            "call evaluate_run once per run, without against",
        )
    from lora_sft.evaluate.run_evaluation import run_evaluation

    return run_evaluation(Path(run), None, split)


@without_hub_kernels()
def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    onto: Literal["dequantized", "original"] = "dequantized",
    verify: Literal["auto", "logits", "tensors", "none"] = "auto",
) -> MergeReport:
    """Merge an adapter into its base, verify the result, and write it to `out`.

    Args:
        adapter: A run directory, or a folder in PEFT's layout.
        out: The folder to write. It must not exist.
        base: A folder or hub id of the base; None: the base that the adapter records.
        onto: The weights of the base to add the adapter to. `dequantized`: the weights that
            training used. For a QLoRA adapter these are quantised and dequantised; for any other
            adapter they are the original ones. `original`: always the original weights.
        verify: `tensors` compares every tensor, `logits` compares the model's answers, `auto` does
            both but skips the answers of a very large model, `none` compares nothing.

    Returns: The report, which is also in `out` as `merge_report.json`.

    Raises:
        ExportError: If adapter, base and output do not fit together.
        VerificationError: If the merged model differs from base + adapter by more than the
            tolerance.
        ModelError: If there is no base.
        CapabilityError: If there is too little memory or disk space.
    """
    from lora_sft.export.merge_plan import make_merge_plan
    from lora_sft.export.merging import merge

    return merge(
        make_merge_plan(
            Path(adapter),
            Path(out),
            base=None if base is None else str(base),
            onto=None if onto == "dequantized" else onto,
            verify=verify,
        )
    )


def preview_rows(recipe: Recipe, *, split: Split = "train", rows: int | None = None) -> Preview:
    """Return a preview of a split: the tokens and labels for training, and the dropped rows.

    The rows are made when the preview is read. `Preview.to_dict()` returns the document of
    `lora-sft preview --format json`. `Preview.follow(show)` calls `show` with each row.

    Args:
        recipe: The recipe, from `read_recipe`.
        split: The split to show.
        rows: How many rows to show, from the first one on; None shows all.

    Raises:
        RecipeError: If the recipe has no such split.
        DataError: If the rows cannot be read.
    """
    from lora_sft.data.preview.shown_rows import Selection, open_preview

    return open_preview(recipe, Selection(split=split, num_rows=rows))
