"""Rows on disk instead of in memory: written in Arrow batches, mapped when they are read."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from lora_sft.cache_folder import find_cache_folder

UNFINISHED_PREFIX = ".unfinished-"  # at the beginning of a folder's name until it is whole
ABANDONED_SECONDS = 7 * 24 * 3600  # no data set takes that long


@contextmanager
def make_scratch_folder() -> Iterator[Path]:
    """A folder for files that nobody keeps: gone at the end, while what is mapped stays readable.

    It lies in the cache folder, because a system's temporary folder is often memory itself.
    """
    try:
        folder = make_unfinished_folder(find_cache_folder() / "scratch")
    except OSError:
        folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_unfinished_folder(parent: Path) -> Path:
    """A new folder in `parent` to write into; those that killed processes left there are removed.

    Raises: OSError where `parent` cannot be written.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in parent.glob(f"{UNFINISHED_PREFIX}*"):
        if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=UNFINISHED_PREFIX, dir=parent))


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables one after another, each gone from memory before the next is made."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def map_tables(paths: Sequence[Path], schema: pa.Schema, fingerprint: str) -> Dataset:
    """The rows of all files, in order, mapped into memory and not read.

    `fingerprint` names them for `datasets`, which would otherwise read every byte to find a name.

    Raises: OSError, pa.ArrowInvalid.
    """
    tables = {path: _map_table(path) for path in dict.fromkeys(paths)}
    in_order = [tables[path] for path in paths]
    return Dataset(pa.concat_tables(in_order or [schema.empty_table()]), fingerprint=fingerprint)


def _map_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()
