"""A data file on this machine or behind a URL: its name, and its unpacked bytes.

The endings of the name show the kind of rows and the compression: `train.jsonl.zst` holds JSON
lines, packed with Zstandard. Files are unpacked while they are read, without a copy on disk. Only
kinds that cannot be read from front to back need a copy (`open_seekable`), which is deleted after
the reading.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import http.client
import io
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import BinaryIO, cast

import pyarrow as pa

from lora_sft.errors import DataError
from lora_sft.folder_links import leads_outside
from lora_sft.shown_text import hide_secrets, make_one_line

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")

# Reading a stored or packed file, local or remote, can raise these.
READ_FAULTS = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
    http.client.HTTPException,
)


def _open_gzip(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=stored, mode="rb"))


def _open_bzip2(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(stored))


def _open_xz(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(stored))


def _open_zstandard(stored: BinaryIO) -> BinaryIO:
    """Unpack Zstandard with Arrow's codec. Python itself has no codec before 3.14."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd"))


COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": _open_gzip,
    ".bz2": _open_bzip2,
    ".xz": _open_xz,
    ".zst": _open_zstandard,
}


@dataclass(frozen=True)
class DataFile:
    """One data file.

    Attributes:
        source: The name that is shown (`name_source`).
        name: The file name. Its endings decide `kind` and `compression`.
        open_stored: Opens the bytes as they are stored, still packed.
        path: The path on this machine; None for a remote file.
    """

    source: str
    name: str
    open_stored: Callable[[], BinaryIO]
    path: Path | None = None

    @property
    def compression(self) -> str:
        """The ending of the compression, such as `.gz`; empty if the file is not packed."""
        suffix = PurePath(self.name).suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @property
    def kind(self) -> str:
        """The ending of the kind of rows: `.jsonl` for `train.jsonl.gz`."""
        name = PurePath(self.name)
        return (name.with_suffix("") if self.compression else name).suffix.lower()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the unpacked bytes, to be read from front to back.

        Reading them can raise any of `READ_FAULTS`.
        """
        with self.open_stored() as stored:
            if not self.compression:
                yield stored
                return
            with COMPRESSIONS[self.compression](stored) as unpacked:
                yield unpacked

    @contextmanager
    def open_seekable(self) -> Iterator[BinaryIO]:
        """Open the unpacked bytes, to be read in any order.

        A packed or remote file is copied to disk first.
        """
        if self.path is not None and not self.compression:
            with self.open_stored() as stored:
                yield stored
            return
        with tempfile.TemporaryFile() as copy:
            with self.open() as unpacked:
                shutil.copyfileobj(unpacked, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def name_source(path: str) -> str:
    """Return the name that is shown for the path of a data set or of a file in it.

    It is the path as the recipe writes it, in one printable line. A URL loses its user, password,
    query and fragment.
    """
    url = re.sub(r"\s", "%20", path)  # `hide_secrets` would read a URL only up to a space
    hidden = hide_secrets(url)
    return make_one_line(path if hidden == url else hidden)


def make_local_file(path: Path, source: str) -> DataFile:
    """Return the data file for a path on this machine."""
    return DataFile(name_source(source), path.name, lambda: path.open("rb"), path)


def has_data_name(name: str) -> bool:
    """Return whether a file of this name, packed or not, can be read."""
    return DataFile("", name, io.BytesIO).kind in KINDS


def check_is_readable(file: DataFile) -> None:
    """Raise DataError if the file name does not end in one of `KINDS`, packed or not."""
    if file.kind in KINDS:
        return
    suffix = PurePath(file.name).suffix.lower()
    if suffix in ARCHIVES or file.kind == ".tar":
        fix = "unpack it first"
    elif file.compression or not suffix:
        fix = f"add the kind of rows to its name, for example: rows.jsonl{suffix}"
    else:
        fix = f"convert it to one of {', '.join(KINDS)}"
    what = (
        f'files that end in "{suffix}" cannot be read' if suffix else "the file name has no ending"
    )
    raise DataError(what, file.source, fix)


def find_fixed_base(pattern: str) -> Path:
    """Return the part of a glob before its first wildcard; all of it if it has none."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), PurePath(pattern).parts))


def check_links(paths: Iterable[Path], named: Path) -> None:
    """Check that no path is a link to a file outside of the folder or file that the recipe names.

    Raises: DataError if one is.
    """
    for path in paths:
        if leads_outside(path, named):
            target = name_source(str(path.resolve()))
            raise DataError(
                f"a file of the data set is a link to a file elsewhere ({target})",
                name_source(str(path)),
                "replace the link by the file, or name the link itself in path or data_files",
            )


def make_read_error(file: DataFile, error: Exception, where: str | None = None) -> DataError:
    """Return the DataError for an exception of `READ_FAULTS`."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return DataError(
        f"the file cannot be read: {make_one_line(reason.splitlines()[0])}",
        where or file.source,
        _find_fix(file, error),
    )


def _find_fix(file: DataFile, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "check the permissions of the file"
    if file.path is None:
        return "check the address, and that this machine can reach it"
    if file.compression:
        return "the file may be incomplete or packed in another way; copy or pack it again"
    return "check the file; if it may be incomplete, copy it again"
