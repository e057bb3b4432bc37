"""The Python interface: what the commands do, as functions that return records.

`lora_sft` exports these names. Importing this file imports no torch; each function imports what it
needs when it is called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_sft.errors import CapabilityError

if TYPE_CHECKING:
    from lora_sft.data.preview.shown_rows import Preview
    from lora_sft.evaluate.scoring import Evaluation
    from lora_sft.export.merging import MergeReport
    from lora_sft.recipe import Recipe
    from lora_sft.train.fit import TrainResult

Split = Literal["train", "validation", "test"]


def train_recipe(
    recipe: Recipe, *, resume: str | Path = "auto", overwrite: bool = False
) -> TrainResult:
    """Train a recipe, as `lora-sft train` does.

    Signals are handled as the command handles them: SIGTERM, SIGUSR1 and Ctrl-C save the state at
    the end of a step, and the result says so.

    Args:
        recipe: What `read_recipe` returned.
        resume: `auto` continues an unfinished run of the same recipe; `never` refuses to; a path
            names the checkpoint to continue from.
        overwrite: Remove the run that is in the output directory first.

    Returns: The last step, the exit code, and the reason if the run was stopped.

    Raises:
        RecipeError: If the recipe, or another run in its output directory, is in the way.
        DataError: If the rows cannot be read, or none is left.
        ModelError: If the model cannot be loaded or does not fit.
        CapabilityError: If this machine cannot do what the recipe asks for.
        TrainingError: If training fails; the last checkpoint stays.
        ExportError: If what `export` asks for cannot be made.
    """
    from lora_sft.processes.world import check_world

    check_world(os.environ)

    from lora_sft.pipeline import run_training
    from lora_sft.processes.this_process import Processes

    return run_training(
        recipe, Processes.from_environment(), resume=str(resume), overwrite=overwrite
    )


def evaluate_run(
    run: str | Path, *, split: Split | None = None, against: str | Path | None = None
) -> Evaluation:
    """Score a run's adapter beside its base on held-out rows, as `lora-sft evaluate` does.

    Args:
        run: A run directory.
        split: The rows to score; None: `test` if the recipe has one, else `validation`.
        against: Another run to compare with. Comparing runs is not possible yet: only None works.

    Raises:
        RecipeError: If the recipe has no such split.
        ModelError: If there is no run, or its training did not end.
        CapabilityError: If `against` is given.
    """
    if against is not None:
        raise CapabilityError(
            "two runs cannot be compared yet",
            f"evaluate_run(against={str(against)!r})",
            "evaluate each run by itself",
        )
    from lora_sft.evaluate.run_evaluation import run_evaluation

    return run_evaluation(Path(run), None, split)


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
        out: The folder to write. It must not exist yet.
        base: A folder or hub id of the base; None: the one that the adapter records.
        onto: The base's weights to add the adapter to. `dequantized` are those that training saw:
            quantised and back for a QLoRA adapter, and the original ones for any other.
            `original` are the base's own in both cases.
        verify: Compare every tensor, the model's answers, both where memory allows (`auto`), or
            nothing.

    Returns: The report, which is also in `out` as `merge_report.json`.

    Raises:
        ExportError: If adapter, base and output do not fit together.
        VerificationError: If the merged model differs from base and adapter past the tolerance.
        ModelError: If there is no base.
        CapabilityError: If memory or disk are too small.
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
    """Return the rows of a split as training would see them: tokens, labels, and what is dropped.

    The rows are made when the preview is read: `Preview.to_dict()` returns the whole document of
    `lora-sft preview --format json`, and `Preview.follow(show)` hands on one row after another.

    Args:
        recipe: What `read_recipe` returned.
        split: Whose rows to show.
        rows: Show only this many, the first of the split; None shows all.

    Raises:
        RecipeError: If the recipe has no such split.
        DataError: If the rows cannot be read.
    """
    from lora_sft.data.preview.shown_rows import Selection, open_preview

    return open_preview(recipe, Selection(split=split, num_rows=rows))
