"""Find the files that a data set's path means: one file, a folder or a glob.

A path that is none of these and looks like no file is left to the hub (`None`).
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from lora_sft.errors import DataError

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2", ".zip")


@dataclass(frozen=True)
class LocalFile:
    """A data file, and its path in the words of the recipe."""

    path: Path
    source: str

    @property
    def suffix(self) -> str:
        """The lower-case suffix, which decides how the file is read."""
        return self.path.suffix.lower()


def find_local_files(dataset: DatasetSection) -> list[LocalFile] | None:
    """The files `dataset` means, in sorted order; None where its path is a hub id.

    Raises: DataError for a path that is clearly local and not there.
    """
    location = Path(dataset.location)
    if location.is_file():
        files = [LocalFile(location, dataset.path)]
    elif location.is_dir():
        files = _files_of_folder(dataset, location)
    elif glob.has_magic(dataset.path):
        files = _files_of_glob(dataset)
    else:
        _check_is_hub_id(dataset)
        return None
    _check_files(dataset, files)
    return files


def _files_of_folder(dataset: DatasetSection, folder: Path) -> list[LocalFile]:
    named = _list_data_files(dataset)
    found = {
        path.relative_to(folder)
        for pattern in named or ["**/*"]
        for path in folder.glob(pattern)
        if path.is_file() and (named or _is_visible_data(path.relative_to(folder)))
    }
    ordered = sorted(found, key=PurePath.as_posix)
    return [
        LocalFile(folder / path, (PurePath(dataset.path) / path).as_posix()) for path in ordered
    ]


def _list_data_files(dataset: DatasetSection) -> list[str]:
    """`data_files` as load_dataset takes it: a pattern, several, or patterns by split."""
    named = dataset.data_files or []
    if isinstance(named, dict):
        named = named.get(dataset.split or "train", [])
    return [named] if isinstance(named, str) else list(named)


def _is_visible_data(path: PurePath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


def _files_of_glob(dataset: DatasetSection) -> list[LocalFile]:
    """Matches, each written with the recipe's own beginning of the path."""
    found = sorted(glob.glob(str(dataset.location), recursive=True))  # noqa: PTH207, absolute
    files = [Path(path) for path in found if Path(path).is_file()]
    location_base, written_base = _fixed_base(str(dataset.location)), _fixed_base(dataset.path)
    sources = [(written_base / path.relative_to(location_base)).as_posix() for path in files]
    return [LocalFile(path, source) for path, source in zip(files, sources, strict=True)]


def _fixed_base(pattern: str) -> PurePath:
    """The part of a glob before its first wildcard."""
    parts = PurePath(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return PurePath(*parts[:fixed])


def _check_is_hub_id(dataset: DatasetSection) -> None:
    path = dataset.path
    suffix = PurePath(path).suffix.lower()
    if "://" in path:
        raise DataError(
            "data cannot be read from a URL yet", path, "download the file and name its local path"
        )
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    if looks_local or suffix in SUFFIXES + COMPRESSED_SUFFIXES:
        raise DataError(
            f'there is no file or folder "{path}"',
            str(dataset.location),
            "check the path; a relative one starts at the recipe's own folder",
        )


def _check_files(dataset: DatasetSection, files: list[LocalFile]) -> None:
    if not files:
        raise DataError(
            f'no data files are found under "{dataset.path}"',
            str(dataset.location),
            f"name a file, a folder or a glob of {', '.join(SUFFIXES)}",
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            raise DataError(
                f'files that end in "{file.suffix}" are not read', file.source, _suffix_fix(file)
            )
    if dataset.split not in (None, "train") and not isinstance(dataset.data_files, dict):
        raise DataError(
            f'local files have no split "{dataset.split}"',
            f"{dataset.path}  split",
            "take split out and name the files of that split, for example with data_files",
        )


def _suffix_fix(file: LocalFile) -> str:
    if file.suffix in COMPRESSED_SUFFIXES:
        return "unpack it first"
    return f"convert it to one of {', '.join(SUFFIXES)}"
