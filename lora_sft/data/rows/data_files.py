"""A data file wherever it lies: its name in the recipe's words, and its unpacked bytes.

The end of its name says how it is packed and which kind of rows it holds: `train.jsonl.zst` is
JSON lines under Zstandard. Nothing is unpacked to disk, but for the kinds that are not read from
front to back (`open_seekable`), whose copy is deleted once it is read.
"""

from __future__ import annotations

import bz2
import gzip
import http.client
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, cast

import pyarrow as pa

from lora_sft.data.one_line import make_one_line
from lora_sft.errors import DataError

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")

# What reading stored or packed bytes can raise, wherever they lie.
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
    """Arrow brings the codec; Python itself has none before 3.14."""
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

    `source` is its path in the words of the recipe, `open_stored` opens its bytes as they are
    stored; `path` is there for a local file.
    """

    source: str
    name: str
    open_stored: Callable[[], BinaryIO]
    path: Path | None = None

    @property
    def compression(self) -> str:
        """The ending that says how the file is packed; empty where it is not."""
        suffix = PurePath(self.name).suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @property
    def kind(self) -> str:
        """The ending that says how rows are written: `.jsonl` of `train.jsonl.gz`."""
        name = PurePath(self.name)
        return (name.with_suffix("") if self.compression else name).suffix.lower()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The unpacked bytes, from front to back. Reading raises one of `READ_FAULTS`."""
        with self.open_stored() as stored:
            if not self.compression:
                yield stored
                return
            with COMPRESSIONS[self.compression](stored) as unpacked:
                yield unpacked

    @contextmanager
    def open_seekable(self) -> Iterator[BinaryIO]:
        """The unpacked bytes, in any order: a packed or remote file is copied to disk first."""
        if self.path is not None and not self.compression:
            with self.open_stored() as stored:
                yield stored
            return
        with tempfile.TemporaryFile() as copy:
            with self.open() as unpacked:
                shutil.copyfileobj(unpacked, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def make_local_file(path: Path, source: str) -> DataFile:
    """A file on this machine."""
    return DataFile(make_one_line(source), path.name, lambda: path.open("rb"), path)


def has_data_name(name: str) -> bool:
    """Whether a file of this name is read, packed or not."""
    return DataFile("", name, io.BytesIO).kind in KINDS


def check_is_readable(file: DataFile) -> None:
    """Raises: DataError where the file's name does not say a kind that is read."""
    if file.kind in KINDS:
        return
    suffix = PurePath(file.name).suffix.lower()
    if suffix in ARCHIVES or file.kind == ".tar":
        fix = "unpack it first"
    elif file.compression or not suffix:
        fix = f"rename it so that its name says what it holds, such as rows.jsonl{suffix}"
    else:
        fix = f"convert it to one of {', '.join(KINDS)}"
    what = f'files that end in "{suffix}" are not read' if suffix else "the name has no ending"
    raise DataError(what, file.source, fix)


def unreadable(file: DataFile, error: Exception, where: str | None = None) -> DataError:
    """The error to raise for one of `READ_FAULTS`."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return DataError(
        f"the file cannot be read: {make_one_line(reason.splitlines()[0])}",
        where or file.source,
        _find_fix(file, error),
    )


def _find_fix(file: DataFile, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "check its permissions"
    if file.path is None:
        return "check the address, and whether this machine reaches it"
    if file.compression:
        return "it may be cut short or packed in another way; copy or pack it again"
    return "check the file; copy it again if it may be cut short"
