"""Keep finished corpora on disk. The key of each is a hash of everything that decides its tokens.

The key covers the bytes of every file, every data setting, the tokenizer, its chat template and
stop tokens, and the code that makes a corpus (`code_hash`). So a changed line is never missed, and
the user never has to clear the cache. A corpus is not kept if some of its data is not in local
files: such data has no bytes to hash before it is read.

The folder of one kept corpus is an entry. It is written under another name and renamed in one step,
so two processes cannot damage each other's entry.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import tokenizers
import transformers
import xxhash
from transformers import PreTrainedTokenizerBase

from lora_sft.cache_folder import CACHE_FOLDER_VARIABLE, find_cache_folder
from lora_sft.data.corpus.arrow_files import make_unfinished_folder
from lora_sft.data.corpus.building import Corpus, build_corpus, open_corpus, write_corpus
from lora_sft.data.corpus.code_hash import PACKAGE, hash_deciding_code
from lora_sft.data.labels.labelling import find_template_date
from lora_sft.data.rows.local_files import find_local_files
from lora_sft.data.templates.rendering import depends_on_date, hash_template
from lora_sft.log import say

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection

CHECKSUMS = "checksums.json"
CHECKSUM_BLOCK_BYTES = 2**22
# Raised by reading an entry that is missing or damaged.
DAMAGE_ERRORS = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class CachedCorpus:
    """A corpus and its entry in the cache.

    Attributes:
        folder: The folder of the entry, or None if the corpus is not kept.
        is_hit: Whether the entry existed already.
        reason: Why the corpus is not kept.
    """

    corpus: Corpus
    folder: Path | None
    is_hit: bool
    reason: str = ""


def load_or_build_corpus(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> CachedCorpus:
    """Return the corpus from the cache. If the cache lacks it, build it and keep it there.

    Raises: DataError as `build_corpus` does.
    """
    stops = frozenset(stop_token_ids)
    folder = _find_folder(data, tokenizer, stops)
    if folder is None:
        reason = "some of its data is not in local files"
        return CachedCorpus(build_corpus(data, tokenizer, stops), None, False, reason)
    kept = _load_entry(folder)
    if kept is not None:
        _report_other_date(kept.template_date, data)
        return CachedCorpus(kept, folder, True)
    try:
        _write_entry(partial(write_corpus, data, tokenizer, stops), folder)
    except OSError as error:
        reason = f"the cache cannot be written: {error}"
        say(f"{reason} (to use another folder, set {CACHE_FOLDER_VARIABLE})")
        return CachedCorpus(build_corpus(data, tokenizer, stops), None, False, reason)
    return CachedCorpus(open_corpus(folder), folder, False)


def with_cached_template_date(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> DataSection:
    """Return the data section with the template date that `load_or_build_corpus` would use.

    This is the date of the first preparation, if the template reads the clock, the recipe names no
    date, and the cache has the corpus. Otherwise the section is returned unchanged.
    """
    if data.template_date or not depends_on_date(tokenizer):
        return data
    folder = _find_folder(data, tokenizer, frozenset(stop_token_ids))
    if folder is None:
        return data
    try:
        cached_date = _open_checked_entry(folder).template_date
    except DAMAGE_ERRORS:
        return data
    _report_other_date(cached_date, data)
    return replace(data, template_date=cached_date)


def _find_folder(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: frozenset[int]
) -> Path | None:
    """Return the folder of the corpus's entry, or None if some data is not in local files."""
    files = _list_files(data)
    if files is None:
        return None
    return find_cache_folder() / "corpus" / make_key(data, tokenizer, stop_token_ids, files)


def _report_other_date(cached_date: str | None, data: DataSection) -> None:
    """Log the date that the template was shown, if it is not the date that it would get now."""
    if cached_date is not None and cached_date != find_template_date(data).isoformat():
        say(
            f"the chat template is shown the date {cached_date}, on which the data was first "
            "prepared (to use another date, set data.template_date)"
        )


def make_key(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: frozenset[int],
    files: Iterable[tuple[str, Path]],
) -> str:
    """Return the key of a corpus: a hash of everything that decides its tokens.

    Today's date is not a part of it. If the recipe names no date, the entry keeps the date of the
    first preparation, and records this date.
    """
    settings = {name: value for name, value in asdict(data).items() if name != "packing"}
    decides = {
        "settings": settings,
        "files": [(source, _hash_file(path)) for source, path in files],
        "tokenizer": _hash_text(tokenizer.backend_tokenizer.to_str()),
        "special_tokens": {
            name: str(value) for name, value in tokenizer.special_tokens_map.items()
        },
        "template": hash_template(tokenizer),
        "stop_token_ids": sorted(stop_token_ids),
        "code": hash_deciding_code(PACKAGE),
        "versions": [transformers.__version__, tokenizers.__version__],
    }
    return _hash_text(json.dumps(decides, sort_keys=True, default=str))


def _list_files(data: DataSection) -> list[tuple[str, Path]] | None:
    """Return every file of data in order, with its name in the recipe.

    Returns: None if some data is not in local files.
    """
    found: list[tuple[str, Path]] = []
    for dataset in _list_datasets(data):
        files = find_local_files(dataset)
        if files is None:
            return None
        found += [(file.source, file.path) for file in files if file.path is not None]
    return found


def _list_datasets(data: DataSection) -> Iterator[DatasetSection]:
    yield from data.datasets
    for split in (data.validation, data.test):
        if split is not None:
            yield from split.datasets or ()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- one entry: the files of `write_corpus`, and a list of their checksums ------------------------


def _write_entry(write: Callable[[Path], None], folder: Path) -> None:
    """Write an entry.

    Raises: OSError if it cannot be written.
    """
    staged = make_unfinished_folder(folder.parent)
    try:
        write(staged)
        hashes = {path.name: _checksum(path) for path in staged.iterdir()}
        (staged / CHECKSUMS).write_text(json.dumps(hashes), encoding="utf-8")
        if folder.exists() and _load_entry(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    except OSError:
        if not (folder / CHECKSUMS).exists():  # if it exists, another process wrote the entry
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _load_entry(folder: Path) -> Corpus | None:
    """Return the corpus of an entry, or None if the entry is missing or damaged."""
    if not folder.exists():
        return None
    try:
        return _open_checked_entry(folder)
    except DAMAGE_ERRORS as error:
        say(f"the cached corpus is damaged and is built again: {folder} ({error})")
        return None


def _open_checked_entry(folder: Path) -> Corpus:
    """Return the corpus of an entry, after comparing each file with its checksum.

    Raises: One of `DAMAGE_ERRORS` if the entry is missing or damaged.
    """
    for name, written in _read_checksums(folder).items():
        if _checksum(folder / name) != written:
            raise ValueError(f"{name} has changed since it was written")
    return open_corpus(folder)


def _read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksum of each file of an entry. The list must name every file.

    Raises:
        OSError: If the list cannot be read.
        ValueError: If it is not valid, or if it lacks a file.
    """
    written = json.loads((folder / CHECKSUMS).read_text("utf-8"))
    if not isinstance(written, dict):
        raise ValueError(f"{CHECKSUMS} is not a JSON object")
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    unlisted = found - written.keys() - {CHECKSUMS}
    if unlisted:
        raise ValueError(f"{CHECKSUMS} does not list {', '.join(sorted(unlisted))}")
    return written


def _checksum(path: Path) -> str:
    """Return the XXH3 checksum of a file.

    It is ten times faster than SHA-256. It finds damage by disks, but not changes by attackers.
    """
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(CHECKSUM_BLOCK_BYTES):
            checksum.update(block)
    return checksum.hexdigest()
