"""Check that a run may write into its output folder.

A run writes files with common names, such as `manifest.json` and `metrics.jsonl`. A file of such a
name is the run's own only if a run wrote it. Otherwise it may be a user's data or recipe, and the
start is refused. `--overwrite` does not change that: it deletes only what runs wrote.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from lora_sft.errors import RecipeError
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.recipe import DatasetSection, Recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.written_files import list_adapter_files

# A `status.json` with these keys is that of a start which failed before it wrote the manifest.
STATUS_KEYS = {"exit_code", "reason", "step"}
MOST_NAMES_SHOWN = 8


def check_output_folder(recipe: Recipe, *, overwrite: bool) -> None:
    """Check that `output_dir` is neither a folder that a run must not change, nor above one.

    These are the user's home and the folders of the base model and the tokenizer. With
    `--overwrite` it must not hold training data either.

    Raises: RecipeError if it is.
    """
    output = Path(recipe.output_dir).resolve()
    for what, folder in _list_precious_folders(recipe, with_data=overwrite):
        if folder.resolve().is_relative_to(output):
            raise RecipeError(
                f"output_dir is, or holds, {what}: {folder}",
                recipe.where("output_dir"),
                "set output_dir to a folder of its own, such as runs/NAME",
            )


def _list_precious_folders(recipe: Recipe, *, with_data: bool) -> Iterator[tuple[str, Path]]:
    yield "your home folder", Path(os.path.expanduser("~"))  # noqa: PTH111, `Path.home` may raise
    for what, location in (
        ("the folder of the base model", recipe.model.location),
        ("the folder of the tokenizer", recipe.tokenizer.location),
    ):
        if Path(location).is_absolute():
            yield what, Path(location)
    if with_data:
        for dataset in _list_datasets(recipe):
            if Path(dataset.location).is_absolute():
                yield "a folder of data, which --overwrite refuses", _find_folder(dataset)


def _list_datasets(recipe: Recipe) -> list[DatasetSection]:
    splits = (recipe.data.validation, recipe.data.test)
    held_out = [each for split in splits if split is not None for each in split.datasets or []]
    return [*recipe.data.datasets, *held_out]


def _find_folder(dataset: DatasetSection) -> Path:
    """Return the folder of a local file or glob; a folder is returned unchanged."""
    location = Path(dataset.location)
    folder = location if location.is_dir() else location.parent
    while glob.has_magic(str(folder)) and not folder.is_dir():
        folder = folder.parent
    return folder


def check_output_files(run: RunDirectory, recipe: Recipe) -> None:
    """Check that every file which this run will write is missing, or that a run wrote it.

    Raises: RecipeError if the run would overwrite a file of the user.
    """
    is_run = is_of_a_run(run)
    _refuse_own_sources(run, recipe, is_run=is_run)
    foreign = [] if is_run else _list_foreign(run, recipe)
    if foreign:
        names = ", ".join(
            each.relative_to(run.path).as_posix() for each in foreign[:MOST_NAMES_SHOWN]
        )
        raise RecipeError(
            f"the run would overwrite files that lora-sft did not write: {names}",
            f"{run.path}  output_dir",
            "move them to another folder, or set another output_dir",
        )


def is_of_a_run(run: RunDirectory) -> bool:
    """Return whether a run wrote the files in this directory.

    The mark of a run is its manifest, which it writes before its other files. If the manifest is
    lost or damaged, the checkpoints show it: each has a `lora_sft.json`.
    """
    manifest = run.read_json(run.manifest) or {}
    if "recipe" in manifest and "versions" in manifest:
        return True
    return any((each / ORIGIN_FILE).exists() for each in run.list_checkpoints())


def _list_foreign(run: RunDirectory, recipe: Recipe) -> list[Path]:
    """Return the files that the run would overwrite, in a folder without the mark of a run."""
    files = [run.recipe, run.manifest, run.metrics]
    if not (run.read_status() or {}).keys() >= STATUS_KEYS:
        files.append(run.status)
    if recipe.data.validation is not None:
        files.append(run.validation_sample)
    existing = [path for path in files if os.path.lexists(path)]
    return [*existing, *list_adapter_files(run), *run.list_checkpoints()]


def _refuse_own_sources(run: RunDirectory, recipe: Recipe, *, is_run: bool) -> None:
    """Refuse an output directory in which the run would overwrite what it reads."""
    if recipe.source.resolve() == run.recipe.resolve() and not is_run:
        raise RecipeError(
            "the run would overwrite this recipe with its resolved recipe",
            recipe.where("output_dir"),
            "set output_dir to another folder than that of the recipe",
        )
    start = recipe.adapter.init_from_location
    if recipe.adapter.init_from and Path(start).resolve().is_relative_to(run.path.resolve()):
        raise RecipeError(
            "the run would overwrite the adapter that it starts from",
            recipe.where("adapter.init_from"),
            "set output_dir to another folder than that of the adapter",
        )
    own = {path.resolve() for path in (run.metrics, run.manifest, run.validation_sample)}
    for dataset in _list_datasets(recipe):
        if Path(dataset.location).resolve() in own:
            raise RecipeError(
                f"the run would overwrite this data file: {dataset.path}",
                recipe.where("data"),
                "set output_dir to another folder than that of the data",
            )
