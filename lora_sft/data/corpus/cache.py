"""Keep the finished corpus on disk, under a key made of everything that decides its tokens.

The key covers the bytes of every file, the tokenizer, the template's text, every data setting,
the stop tokens and the code that makes a corpus (`code_hash`): an edited line is never missed, and
nothing has to be cleared by hand. Data that is not in local files has no bytes to look at and is
not kept. An entry is written beside its place and moved there in one step: two processes cannot
spoil each other's.
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

from lora_sft.cache_folder import VARIABLE, find_cache_folder
from lora_sft.data.corpus.arrow_files import make_unfinished_folder
from lora_sft.data.corpus.building import Corpus, build_corpus, open_corpus, write_corpus
from lora_sft.data.corpus.code_hash import PACKAGE, hash_deciding_code
from lora_sft.data.labels.labelling import find_template_date
from lora_sft.data.rows.local_files import find_local_files
from lora_sft.data.templates.rendering import hash_template, reads_clock
from lora_sft.log import say

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection

CHECKSUMS = "checksums.json"
CHECKSUM_BLOCK_BYTES = 2**22
DAMAGE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class CachedCorpus:
    """A corpus, where it is kept (None: nowhere, for `reason`), and whether it was there."""

    corpus: Corpus
    folder: Path | None
    is_hit: bool
    reason: str = ""


def load_or_build_corpus(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> CachedCorpus:
    """The corpus from the cache, else built and kept there.

    Raises: DataError as `build_corpus` does.
    """
    stops = frozenset(stop_token_ids)
    folder = _find_folder(data, tokenizer, stops)
    if folder is None:
        reason = "not all of its data is in local files"
        return CachedCorpus(build_corpus(data, tokenizer, stops), None, False, reason)
    kept = _load(folder)
    if kept is not None:
        _tell_earlier_day(kept.template_date, data)
        return CachedCorpus(kept, folder, True)
    try:
        _keep(partial(write_corpus, data, tokenizer, stops), folder)
    except OSError as error:
        reason = f"the cache cannot be written: {error}"
        say(f"{reason} (another folder: {VARIABLE})")
        return CachedCorpus(build_corpus(data, tokenizer, stops), None, False, reason)
    return CachedCorpus(open_corpus(folder), folder, False)


def with_kept_day(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Iterable[int]
) -> DataSection:
    """The section that renders what `load_or_build_corpus` finds: with the day of the first
    preparation, where the template reads the clock, no day is named and the corpus is kept."""
    if data.template_date or not reads_clock(tokenizer):
        return data
    folder = _find_folder(data, tokenizer, frozenset(stop_token_ids))
    if folder is None:
        return data
    try:
        kept_day = _open_whole(folder).template_date
    except DAMAGE:  # none is kept, or it would be built anew
        return data
    _tell_earlier_day(kept_day, data)
    return replace(data, template_date=kept_day)


def _find_folder(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, stop_token_ids: frozenset[int]
) -> Path | None:
    """Where the corpus is kept once it is built; None where its data is not all in local files."""
    files = _list_files(data)
    if files is None:
        return None
    return find_cache_folder() / "corpus" / make_key(data, tokenizer, stop_token_ids, files)


def _tell_earlier_day(kept_day: str | None, data: DataSection) -> None:
    """Say which day a template that reads the clock was shown, where it is not this one."""
    if kept_day is not None and kept_day != find_template_date(data).isoformat():
        say(
            f"the chat template is shown the date {kept_day}, the day of the first preparation "
            "(another: data.template_date)"
        )


def make_key(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: frozenset[int],
    files: Iterable[tuple[str, Path]],
) -> str:
    """A name that changes with anything that the tokens depend on.

    The day is none of it: where the recipe names none, that of the first preparation is kept, and
    the corpus says which it is.
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
    """Every file in its order, as the recipe names it; None where some data is elsewhere."""
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


# --- one entry: what `write_corpus` leaves, and the hash of each of its files --------------------


def _keep(write: Callable[[Path], None], folder: Path) -> None:
    """Write an entry. Raises: OSError where it cannot be written."""
    staged = make_unfinished_folder(folder.parent)
    try:
        write(staged)
        hashes = {path.name: _checksum(path) for path in staged.iterdir()}
        (staged / CHECKSUMS).write_text(json.dumps(hashes), encoding="utf-8")
        if folder.exists() and _load(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    except OSError:
        if not (folder / CHECKSUMS).exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _load(folder: Path) -> Corpus | None:
    """The corpus of an entry; None where there is none, or its bytes are not what was written."""
    if not folder.exists():
        return None
    try:
        return _open_whole(folder)
    except DAMAGE as error:
        say(f"the cached corpus is damaged and is built anew: {folder} ({error})")
        return None


def _open_whole(folder: Path) -> Corpus:
    """Raises: one of `DAMAGE` where the entry is not there, or its bytes not as written."""
    for name, written in _read_checksums(folder).items():
        if _checksum(folder / name) != written:
            raise ValueError(f"{name} is not as it was written")
    return open_corpus(folder)


def _read_checksums(folder: Path) -> dict[str, str]:
    """What each file of an entry was written as; a file that is not listed could be any.

    Raises: OSError, or ValueError where the list is none or is not whole.
    """
    written = json.loads((folder / CHECKSUMS).read_text("utf-8"))
    if not isinstance(written, dict):
        raise ValueError(f"{CHECKSUMS} is no list of files")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    unlisted = there - written.keys() - {CHECKSUMS}
    if unlisted:
        raise ValueError(f"{CHECKSUMS} does not list {', '.join(sorted(unlisted))}")
    return written


def _checksum(path: Path) -> str:
    """Ten times faster than SHA-256: this is against broken disks, not against people."""
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(CHECKSUM_BLOCK_BYTES):
            checksum.update(block)
    return checksum.hexdigest()
