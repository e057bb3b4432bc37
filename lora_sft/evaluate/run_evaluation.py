"""Evaluate a run's adapter and its base, or a model, on the held-out rows of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from lora_sft.data.corpus.building import Corpus
from lora_sft.data.corpus.loading import load_data
from lora_sft.errors import RecipeError
from lora_sft.evaluate.scoring import Evaluation, evaluate_split
from lora_sft.model.adapter import load_adapter
from lora_sft.model.base_model import CausalModel, load_base_model
from lora_sft.model.computing import computing_errors
from lora_sft.recipe import Recipe, read_recipe
from lora_sft.run_directory import RunDirectory, is_run


def run_evaluation(
    path: Path,
    recipe_path: Path | None,
    split: str | None,
    max_rows: int | None = None,
    *,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Score the model in `path` on one split of a recipe's data.

    Args:
        path: A run directory or a model folder.
        recipe_path: The recipe with the data and the metrics; None: the run's own recipe.
        split: `train`, `validation` or `test`; None: `test` if the recipe has one, else
            `validation`.
        max_rows: Score only this many rows, the first of the split.
        overrides: Settings over those of the recipe, as `section.field=value`.

    Raises: RecipeError if the recipe has no such split, or if a model is given without a recipe.
    """
    recipe = read_recipe(recipe_path or _find_recipe(path), overrides)
    split = split or ("validation" if recipe.data.test is None else "test")
    tokenizer, corpus = load_data(recipe, RunDirectory(path).read_template_date())
    rows = _select_rows(recipe, corpus, split, max_rows)
    model = _load_scored_model(recipe, path)
    stops = sorted(corpus.stop_token_ids)
    with computing_errors(recipe.model.model_name_or_path):
        return evaluate_split(model, tokenizer, rows.to_list(), split, recipe.evaluate, stops)


def _find_recipe(path: Path) -> Path:
    if is_run(path):
        return RunDirectory(path).recipe
    raise RecipeError(
        "this folder is a model and not a run, so it names no held-out rows",
        str(path),
        "add --recipe RECIPE with the data to use",
    )


def _select_rows(recipe: Recipe, corpus: Corpus, split: str, max_rows: int | None) -> Dataset:
    rows = corpus.get_split(split)
    if rows is None:
        raise RecipeError(
            f"the recipe has no {split} split",
            recipe.where(f"data.{split}"),
            f"write data.{split}: {{fraction: 0.05}} or {{datasets: [...]}}",
        )
    return rows if max_rows is None or max_rows >= len(rows) else rows.select(range(max_rows))


def _load_scored_model(recipe: Recipe, path: Path) -> CausalModel:
    if not is_run(path):
        return load_base_model(recipe.model.at(str(path))).eval()
    base = load_base_model(recipe.model, quantization=recipe.quantization)
    return load_adapter(base, RunDirectory(path).adapter).eval()
