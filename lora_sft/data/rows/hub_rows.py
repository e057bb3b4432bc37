"""Read source rows from the Hub with `datasets.load_dataset`.

The recipe uses the argument names of this function.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_sft.data.drops import Drop
from lora_sft.data.rows.columnar_rows import BATCH_ROWS, VALUE_FAULTS, read_columns
from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection


def read_hub_rows(dataset: DatasetSection) -> Iterator[dict[str, Any] | Drop]:
    """Yield the rows of one split, in the order of the Hub.

    Raises: DataError if the split does not exist, or the data set cannot be loaded.
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
        raise _make_load_error(dataset, error) from error
    first_row = 0
    try:
        for batch in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from read_columns(batch, dataset.path, first_row)
            first_row += batch.num_rows
    except (OSError, *VALUE_FAULTS) as error:
        if isinstance(error, DataError):
            raise
        raise _make_load_error(dataset, error) from error


def _find_default_split(dataset: DatasetSection) -> str:
    """Return `train` if the data set has this split.

    Raises: DataError if it has not: the recipe must then name a split.
    """
    import datasets

    try:
        splits = datasets.get_dataset_split_names(
            dataset.path,
            config_name=dataset.name,
            revision=dataset.revision,
            data_files=dataset.data_files,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _make_load_error(dataset, error) from error
    if "train" in splits:
        return "train"
    raise DataError(
        f'{dataset.path} has no split "train"',
        f"{dataset.path}  split",
        f"write one of these: {', '.join(f'split: {split}' for split in splits)}",
    )


def _make_load_error(dataset: DatasetSection, error: Exception) -> DataError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    revision = f" @ {dataset.revision}" if dataset.revision else ""
    return DataError(
        f"the data set cannot be loaded from the Hub: {first_line}",
        f"{dataset.path}{revision}",
        "check path, name, split and revision; a local file must exist at this path",
    )
