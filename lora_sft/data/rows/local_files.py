"""Find the files on this machine that a data set's path names: a file, a folder or a glob.

A folder that `datasets.save_to_disk` wrote is recognised. Its metadata files hold no rows. If it
holds several splits, the recipe's `split` chooses one. A path that does not exist here, and does
not look like a file name, is a URL or a Hub id: `find_local_files` returns None for it.

A link that leads out of a folder is refused, unless the recipe itself names the link. Somebody else
may have made the folder, and the link may lead to a private file.
"""

from __future__ import annotations

import glob
import json
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NoReturn

from lora_sft.data.rows.data_files import (
    ARCHIVES,
    COMPRESSIONS,
    KINDS,
    DataFile,
    check_is_readable,
    check_links,
    find_fixed_base,
    has_data_name,
    make_local_file,
    name_source,
)
from lora_sft.data.rows.remote_files import is_url
from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection

# Metadata files that save_to_disk writes beside its Arrow files.
SAVED_SPLITS = "dataset_dict.json"
SAVED_METADATA = frozenset((SAVED_SPLITS, "dataset_info.json", "state.json"))
DEFAULT_SPLIT = "train"


def find_local_files(dataset: DatasetSection) -> list[DataFile] | None:
    """Return the files of `dataset`, sorted; None if its path is a URL or a Hub id.

    Raises: DataError if the path is clearly local, and does not exist or holds no rows.
    """
    if is_url(dataset.location):
        return None
    location = Path(dataset.location)
    if location.is_file():
        files = [make_local_file(location, dataset.path)]
    elif (location / SAVED_SPLITS).is_file():
        return _find_saved_split(dataset, location)
    elif location.is_dir():
        files = _find_in_folder(dataset, location)
    elif glob.has_magic(dataset.path):
        files = _find_by_glob(dataset)
    else:
        _check_is_hub_id(dataset)
        return None
    check_files(dataset, files)
    return files


def check_files(dataset: DatasetSection, files: list[DataFile]) -> None:
    """Check that there are files, that each can be read, and that no split is chosen from them.

    Raises: DataError if not.
    """
    if not files:
        raise DataError(
            f'no data files were found under "{name_source(dataset.path)}"',
            name_source(str(dataset.location)),
            f"name a file, a folder or a glob of {', '.join(KINDS)}",
        )
    for file in files:
        check_is_readable(file)
    if dataset.split not in (None, DEFAULT_SPLIT) and not isinstance(dataset.data_files, dict):
        raise DataError(
            f'there is no split "{dataset.split}", because data files have no splits',
            f"{name_source(dataset.path)}  split",
            "remove split, and name the files of that split, for example with data_files",
        )


def _find_saved_split(dataset: DatasetSection, folder: Path) -> list[DataFile]:
    """Return the Arrow files of one split in a folder that `DatasetDict.save_to_disk` wrote."""
    split = dataset.split or DEFAULT_SPLIT
    found = sorted((folder / split).glob("*.arrow"))
    check_links(found, folder)
    files = [
        make_local_file(path, (PurePath(dataset.path) / split / path.name).as_posix())
        for path in found
    ]
    if not files:
        raise DataError(
            f'the saved data set has no split "{split}"',
            f"{dataset.path}  split",
            f"write one of these: {_list_saved_splits(folder)}",
        )
    return files


def _list_saved_splits(folder: Path) -> str:
    try:
        splits = json.loads((folder / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
        return make_one_line(", ".join(f"split: {split}" for split in splits))
    except (OSError, ValueError, LookupError, TypeError):
        return "split: the name of a folder inside it"


def _find_in_folder(dataset: DatasetSection, folder: Path) -> list[DataFile]:
    patterns = _list_data_files(dataset)
    found = set()
    for pattern in patterns:
        matches = _match(folder, pattern)
        if not matches:
            where = f"{make_one_line(str(folder))}  data_files"
            fix = "name files in this folder"
            raise DataError(f'data_files: "{pattern}" matches no file', where, fix)
        check_links((folder / path for path in matches), folder / find_fixed_base(pattern))
        found.update(matches)
    if not patterns:
        found.update(path for path in _match(folder, "**/*") if _is_visible_data(folder, path))
        check_links((folder / path for path in sorted(found)), folder)
    ordered = sorted(found, key=PurePath.as_posix)
    return [
        make_local_file(folder / path, (PurePath(dataset.path) / path).as_posix())
        for path in ordered
    ]


def _match(folder: Path, pattern: str) -> list[PurePath]:
    found = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207, any pattern
    return [PurePath(path) for path in found if (folder / path).is_file()]


def _list_data_files(dataset: DatasetSection) -> list[str]:
    """Return the patterns in `data_files`: one, several, or those of the chosen split.

    `load_dataset` takes the same three forms.

    Raises: DataError if the split is missing, or a pattern is not a string.
    """
    named = dataset.data_files or []
    if isinstance(named, dict):
        split = dataset.split or DEFAULT_SPLIT
        if split not in named:
            raise DataError(
                f"data_files has no split {split}",
                f"{dataset.path}  data_files",
                f"write one of these: {', '.join(f'split: {name}' for name in named)}",
            )
        named = named[split]
    patterns = [named] if isinstance(named, str) else named
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise DataError(
            "data_files holds a value that is not a file name",
            f"{dataset.path}  data_files",
            "write a file name or a pattern, a list of them, or one of these per split",
        )
    return patterns


def _is_visible_data(folder: Path, path: PurePath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    beside = (folder / path).parent
    is_metadata = path.name in SAVED_METADATA and next(beside.glob("*.arrow"), None) is not None
    return not hidden and not is_metadata and has_data_name(path.name)


def _find_by_glob(dataset: DatasetSection) -> list[DataFile]:
    """Return the matching files. The source of each begins as the recipe writes the path."""
    found = sorted(glob.glob(str(dataset.location), recursive=True))  # noqa: PTH207, absolute
    files = [Path(path) for path in found if Path(path).is_file()]
    location_base, written_base = (
        find_fixed_base(str(dataset.location)),
        find_fixed_base(dataset.path),
    )
    check_links(files, location_base)
    sources = [(written_base / path.relative_to(location_base)).as_posix() for path in files]
    return [make_local_file(path, source) for path, source in zip(files, sources, strict=True)]


def _check_is_hub_id(dataset: DatasetSection) -> None:
    path = dataset.path
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    suffix = PurePath(path).suffix.lower()
    if looks_local or suffix in (*KINDS, *COMPRESSIONS, *ARCHIVES):
        _refuse_missing(dataset)


def _refuse_missing(dataset: DatasetSection) -> NoReturn:
    raise DataError(
        f'there is no file or folder "{make_one_line(dataset.path)}"',
        make_one_line(str(dataset.location)),
        "check the path; a relative path starts at the folder of the recipe",
    )
