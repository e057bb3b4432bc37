"""Rules about the section `data`: data sets, splits, formats, and the part that is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_sft.recipe.locations import is_hub_id
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding
from lora_sft.recipe.sections.data import DatasetSection, SplitSection

LOAD_DATASET_BUILDERS = frozenset(("json", "csv", "parquet", "arrow", "text"))
CONVERSATION_FORMATS = frozenset(("messages", "sharegpt"))
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


def dataset_lists_are_not_empty(recipe: Recipe) -> Iterator[Finding]:
    """Refuse an empty list of data sets: it has no rows to learn."""
    lists = [("data.datasets", recipe.data.datasets)]
    for name, split in _splits(recipe):
        lists += [(f"{name}.datasets", split.datasets)] if split.datasets is not None else []
    for path, datasets in lists:
        if not datasets:
            fix = f"write {path}: [{{path: train.jsonl}}]"
            yield Finding((path,), f"{path} is an empty list", fix)


def split_has_one_source(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a held-out split that has both a fraction and data sets, or neither of them."""
    for name, split in _splits(recipe):
        paths = (f"{name}.fraction", f"{name}.datasets")
        if split.fraction is not None and split.datasets is not None:
            what = f"{name} has both a fraction and data sets"
            yield Finding(paths, what, f"delete {paths[0]} or {paths[1]}")
        elif split.fraction is None and split.datasets is None:
            what = f"{name} has neither a fraction nor data sets"
            yield Finding((name, *paths), what, f"write {paths[0]}: 0.05")


def group_by_needs_a_fraction(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `group_by` with data sets: it only affects how a fraction is divided."""
    for name, split in _splits(recipe):
        if split.group_by is not None and split.fraction is None and split.datasets is not None:
            what = f"{name}.group_by works only with a fraction, not with data sets"
            paths = (f"{name}.group_by", f"{name}.datasets")
            yield Finding(paths, what, f"delete {name}.group_by")


def fractions_use_the_same_groups(recipe: Recipe) -> Iterator[Finding]:
    """Refuse two fractions with different `group_by`: each would divide the other's groups."""
    groups = {
        f"{name}.group_by": split.group_by
        for name, split in _splits(recipe)
        if split.fraction is not None
    }
    if len(set(groups.values())) > 1:
        column = next(column for column in groups.values() if column is not None)
        other = next(path for path, each in groups.items() if each != column)
        what = "validation and test divide the same rows, but with different values of group_by"
        yield Finding(tuple(groups), what, f"write {other}: {column}")


def fractions_leave_training_rows(recipe: Recipe) -> Iterator[Finding]:
    """Refuse fractions that leave no training rows. Both are taken from the training rows."""
    shares = {f"{name}.fraction": split.fraction or 0 for name, split in _splits(recipe)}
    if sum(shares.values()) >= 1:
        what = f"{' and '.join(shares)} add up to 1 or more, so no row is left for training"
        yield Finding(tuple(shares), what, "write fractions that add up to less than 1")


def dataset_is_listed_once(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a data set that is listed twice. If this is wanted, `repeat` is the setting for it."""
    seen: dict[tuple[Any, ...], str] = {}
    for path, dataset in _with_paths(recipe.data.datasets, "data.datasets"):
        first = seen.setdefault(_identify_rows(dataset), path)
        if first != path:
            what = f'"{dataset.path}" is listed twice'
            fix = f"delete one, or write {first}.repeat: 2"
            yield Finding((first, path), what, fix)


def held_out_rows_are_not_training_rows(recipe: Recipe) -> Iterator[Finding]:
    """Refuse held-out rows that are also training rows: their score would measure nothing."""
    training = {
        _identify_rows(dataset): path
        for path, dataset in _with_paths(recipe.data.datasets, "data.datasets")
    }
    for name, split in _splits(recipe):
        for path, dataset in _with_paths(split.datasets or [], f"{name}.datasets"):
            if _identify_rows(dataset) in training:
                what = f"{path} has the same rows as the training data"
                fix = f"name another file or split, or write {name}: {{fraction: 0.05}}"
                yield Finding((f"{path}.path", training[_identify_rows(dataset)]), what, fix)


def held_out_hub_dataset_names_its_split(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a held-out Hub data set without `split`: the default `train` is rarely wanted here."""
    for name, split in _splits(recipe):
        for path, dataset in _with_paths(split.datasets or [], f"{name}.datasets"):
            if is_hub_id(dataset.location) and dataset.split is None:
                fix = f"write {path}.split: {name.removeprefix('data.')}"
                yield Finding((f"{path}.path",), f"{path} is a Hub data set without a split", fix)


def path_names_the_data_file(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `path: json` with `data_files`, the form of load_dataset: it loses relative paths."""
    for path, dataset in _all_datasets(recipe):
        if dataset.location in LOAD_DATASET_BUILDERS:
            file = dataset.data_files if isinstance(dataset.data_files, str) else "train.jsonl"
            what = f"{dataset.path} is a file type, not a data set"
            yield Finding((f"{path}.path",), what, f"write {path}.path: {file}")


def loss_on_fits_the_format(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a `loss_on` that names a part which rows of this format do not have.

    Conversations have no completion, and texts have no assistant. Tokenized rows have their own
    labels.
    """
    loss_on = recipe.data.loss_on
    for path, dataset in _with_paths(recipe.data.datasets, "data.datasets"):
        wanted = None
        if loss_on == "completion" and dataset.format in CONVERSATION_FORMATS | {"text"}:
            wanted = "all" if dataset.format == "text" else "last_assistant"
        elif loss_on in ("assistant", "last_assistant") and dataset.format == "text":
            wanted = "all"
        elif loss_on not in ("auto", "all") and dataset.format == "tokenized":
            wanted = "auto"
        if wanted:
            what = f"data.loss_on: {loss_on} does not work with rows of format {dataset.format}"
            paths = ("data.loss_on", f"{path}.format")
            yield Finding(paths, what, f"write data.loss_on: {wanted}")


def template_date_is_a_date(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a `template_date` that is not a date: chat templates format it themselves."""
    date = recipe.data.template_date
    if date is not None and not _DATE.fullmatch(date):
        what = f'data.template_date must be a date such as 2026-01-31, not "{date}"'
        yield Finding(("data.template_date",), what, 'write data.template_date: "2026-01-31"')


def _splits(recipe: Recipe) -> list[tuple[str, SplitSection]]:
    splits = {"data.validation": recipe.data.validation, "data.test": recipe.data.test}
    return [(name, split) for name, split in splits.items() if split is not None]


def _with_paths(datasets: list[DatasetSection], path: str) -> Iterator[tuple[str, DatasetSection]]:
    return ((f"{path}.{index}", dataset) for index, dataset in enumerate(datasets))


def _all_datasets(recipe: Recipe) -> Iterator[tuple[str, DatasetSection]]:
    yield from _with_paths(recipe.data.datasets, "data.datasets")
    for name, split in _splits(recipe):
        yield from _with_paths(split.datasets or [], f"{name}.datasets")


def _identify_rows(dataset: DatasetSection) -> tuple[Any, ...]:
    """Return the settings that decide which rows a data set has."""
    return (
        dataset.location, dataset.name, dataset.split or "train", dataset.revision,
        repr(dataset.data_files),
    )  # fmt: skip
