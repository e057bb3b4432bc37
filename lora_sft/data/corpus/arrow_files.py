"""Keep rows in Arrow files instead of in memory: write tables to a file, and map it to read it."""

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

UNFINISHED_PREFIX = ".unfinished-"  # the name of a folder begins with this until it is complete
ABANDONED_SECONDS = 7 * 24 * 3600  # the preparation of a data set never takes this long


@contextmanager
def make_scratch_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, and remove it at the end. Mapped files stay readable.

    The folder is in the cache folder, because a system's temporary folder may be kept in memory.
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
    """Create a folder in `parent` to write into. Remove old ones that killed processes left.

    Raises: OSError if `parent` cannot be written.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in parent.glob(f"{UNFINISHED_PREFIX}*"):
        if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=UNFINISHED_PREFIX, dir=parent))


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables to one file. Only one table is in memory at a time."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)


def map_tables(paths: Sequence[Path], schema: pa.Schema, fingerprint: str) -> Dataset:
    """Return the rows of all files in order, mapped into memory without reading them.

    Args:
        fingerprint: The name of these rows for `datasets`. Without it, `datasets` reads every byte
            to compute one.

    Raises: OSError or pa.ArrowInvalid if a file cannot be read.
    """
    tables = {path: _map_table(path) for path in dict.fromkeys(paths)}
    in_order = [tables[path] for path in paths]
    return Dataset(pa.concat_tables(in_order or [schema.empty_table()]), fingerprint=fingerprint)


def _map_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_stream(file).read_all()
