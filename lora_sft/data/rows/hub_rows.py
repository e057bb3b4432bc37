"""Read a data set from the hub through `datasets.load_dataset`, whose names the recipe uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_sft.data.rows.columnar_rows import BATCH_ROWS, VALUE_FAULTS, read_columns
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection


def read_hub_rows(dataset: DatasetSection) -> Iterator[dict[str, Any]]:
    """The rows of one split, in the hub's order.

    Raises: DataError where the split is missing or the hub cannot deliver.
    """
    import datasets

    split = dataset.split or _find_default_split(dataset)
    try:
        rows = datasets.load_dataset(
            dataset.path,
            name=dataset.name,
            split=split,
            revision=dataset.revision,
            data_files=dataset.data_files,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(dataset, error) from error
    first_row = 0
    try:
        for batch in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from read_columns(batch, dataset.path, first_row)
            first_row += batch.num_rows
    except (OSError, *VALUE_FAULTS) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(dataset, error) from error


def _find_default_split(dataset: DatasetSection) -> str:
    """`train` where there is one; any other choice is the recipe's to make."""
    import datasets

    try:
        splits = datasets.get_dataset_split_names(
            dataset.path,
            config_name=dataset.name,
            revision=dataset.revision,
            data_files=dataset.data_files,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(dataset, error) from error
    if "train" in splits:
        return "train"
    raise DataError(
        f"{dataset.path} has no split called train",
        f"{dataset.path}  split",
        f"write one of these: {', '.join(f'split: {split}' for split in splits)}",
    )


def _unreadable(dataset: DatasetSection, error: Exception) -> DataError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    revision = f" @ {dataset.revision}" if dataset.revision else ""
    return DataError(
        f"the hub's data set cannot be loaded: {first_line}",
        f"{dataset.path}{revision}",
        "check path, name, split and revision; if it is meant as a local file, check its path",
    )
