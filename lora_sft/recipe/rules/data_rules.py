"""What must hold together in `data`: sources, splits, formats and what is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_sft.recipe.locations import is_hub_id
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding
from lora_sft.recipe.schema import DatasetSection, SplitSection

LOAD_DATASET_BUILDERS = frozenset(("json", "csv", "parquet", "arrow", "text"))
CONVERSATION_FORMATS = frozenset(("messages", "sharegpt"))
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


def rows_come_from_somewhere(recipe: Recipe) -> Iterator[Finding]:
    """An empty list of data sets leaves nothing to learn."""
    lists = [("data.datasets", recipe.data.datasets)]
    for name, split in _splits(recipe):
        lists += [(f"{name}.datasets", split.datasets)] if split.datasets is not None else []
    for path, datasets in lists:
        if not datasets:
            fix = f"write {path}: [{{path: train.jsonl}}]"
            yield Finding((path,), f"{path} names no data set", fix)


def a_split_has_one_source(recipe: Recipe) -> Iterator[Finding]:
    """Held-out rows are a share of the training rows or a set of their own, not both."""
    for name, split in _splits(recipe):
        paths = (f"{name}.fraction", f"{name}.datasets")
        if split.fraction is not None and split.datasets is not None:
            what = f"{name} has both a fraction and data sets"
            yield Finding(paths, what, f"keep one: delete {paths[0]} or {paths[1]}")
        elif split.fraction is None and split.datasets is None:
            yield Finding((name, *paths), f"{name} is empty", f"write {paths[0]}: 0.05")


def groups_are_of_a_fraction(recipe: Recipe) -> Iterator[Finding]:
    """Only rows that are divided can be kept together."""
    for name, split in _splits(recipe):
        if split.group_by is not None and split.fraction is None and split.datasets is not None:
            what = f"{name}.group_by keeps groups together where a fraction is held out"
            paths = (f"{name}.group_by", f"{name}.datasets")
            yield Finding(paths, what, f"delete {name}.group_by")


def held_out_fractions_group_alike(recipe: Recipe) -> Iterator[Finding]:
    """A row has one place; two ways to draw it would tear the groups of one of them apart."""
    groups = {
        f"{name}.group_by": split.group_by
        for name, split in _splits(recipe)
        if split.fraction is not None
    }
    if len(set(groups.values())) > 1:
        column = next(column for column in groups.values() if column is not None)
        other = next(path for path, each in groups.items() if each != column)
        what = "validation and test divide the same rows, and group them differently"
        yield Finding(tuple(groups), what, f"write {other}: {column}")


def held_out_fractions_leave_rows_to_train_on(recipe: Recipe) -> Iterator[Finding]:
    """Both fractions are taken from the same training rows."""
    shares = {f"{name}.fraction": split.fraction or 0 for name, split in _splits(recipe)}
    if sum(shares.values()) >= 1:
        what = f"{' and '.join(shares)} hold out every row"
        yield Finding(tuple(shares), what, "write fractions that add up to less than 1")


def a_data_set_is_listed_once(recipe: Recipe) -> Iterator[Finding]:
    """The same rows twice are more often a slip than a wish; the wish has `repeat`."""
    seen: dict[tuple[Any, ...], str] = {}
    for path, dataset in _listed(recipe.data.datasets, "data.datasets"):
        first = seen.setdefault(_rows_of(dataset), path)
        if first != path:
            what = f'"{dataset.path}" is listed twice'
            fix = f"delete one, or write {first}.repeat: 2"
            yield Finding((first, path), what, fix)


def held_out_rows_are_not_training_rows(recipe: Recipe) -> Iterator[Finding]:
    """A score on rows that were learned says nothing."""
    training = {
        _rows_of(dataset): path for path, dataset in _listed(recipe.data.datasets, "data.datasets")
    }
    for name, split in _splits(recipe):
        for path, dataset in _listed(split.datasets or [], f"{name}.datasets"):
            if _rows_of(dataset) in training:
                what = f"{path} holds the rows that are trained on"
                fix = f"name another file or split, or write {name}: {{fraction: 0.05}}"
                yield Finding((f"{path}.path", training[_rows_of(dataset)]), what, fix)


def held_out_hub_data_names_its_split(recipe: Recipe) -> Iterator[Finding]:
    """Left out, the split would be `train`, which is rarely what is meant here."""
    for name, split in _splits(recipe):
        for path, dataset in _listed(split.datasets or [], f"{name}.datasets"):
            if is_hub_id(dataset.location) and dataset.split is None:
                fix = f"write {path}.split: {name.removeprefix('data.')}"
                yield Finding((f"{path}.path",), f"{path} does not say which split to take", fix)


def files_are_named_in_path(recipe: Recipe) -> Iterator[Finding]:
    """`path: json` with `data_files` is load_dataset's way; relative files would be lost."""
    for path, dataset in _all_datasets(recipe):
        if dataset.location in LOAD_DATASET_BUILDERS:
            file = dataset.data_files if isinstance(dataset.data_files, str) else "train.jsonl"
            what = f"{dataset.path} is a file type, not a data set"
            yield Finding((f"{path}.path",), what, f"write {path}.path: {file}")


def what_is_learned_fits_the_format(recipe: Recipe) -> Iterator[Finding]:
    """Chats have no completion, text no assistant; rows of tokens say what is learned."""
    loss_on = recipe.data.loss_on
    for path, dataset in _listed(recipe.data.datasets, "data.datasets"):
        wanted = None
        if loss_on == "completion" and dataset.format in CONVERSATION_FORMATS | {"text"}:
            wanted = "all" if dataset.format == "text" else "last_assistant"
        elif loss_on in ("assistant", "last_assistant") and dataset.format == "text":
            wanted = "all"
        elif loss_on not in ("auto", "all") and dataset.format == "tokenized":
            wanted = "auto"
        if wanted:
            what = f"data.loss_on: {loss_on} finds nothing in rows of format {dataset.format}"
            paths = ("data.loss_on", f"{path}.format")
            yield Finding(paths, what, f"write data.loss_on: {wanted}")


def a_template_date_is_a_day(recipe: Recipe) -> Iterator[Finding]:
    """Templates format the day themselves, so it must be one."""
    date = recipe.data.template_date
    if date is not None and not _DATE.fullmatch(date):
        what = f'data.template_date must be a day, not "{date}"'
        yield Finding(("data.template_date",), what, 'write data.template_date: "2026-01-31"')


def _splits(recipe: Recipe) -> list[tuple[str, SplitSection]]:
    splits = {"data.validation": recipe.data.validation, "data.test": recipe.data.test}
    return [(name, split) for name, split in splits.items() if split is not None]


def _listed(datasets: list[DatasetSection], path: str) -> Iterator[tuple[str, DatasetSection]]:
    return ((f"{path}.{index}", dataset) for index, dataset in enumerate(datasets))


def _all_datasets(recipe: Recipe) -> Iterator[tuple[str, DatasetSection]]:
    yield from _listed(recipe.data.datasets, "data.datasets")
    for name, split in _splits(recipe):
        yield from _listed(split.datasets or [], f"{name}.datasets")


def _rows_of(dataset: DatasetSection) -> tuple[Any, ...]:
    """What decides which rows these are."""
    return (
        dataset.location, dataset.name, dataset.split or "train", dataset.revision,
        repr(dataset.data_files),
    )  # fmt: skip
