"""Keep the finished corpus on disk, under a key made of everything that decides its tokens.

The key covers the bytes of every file, the tokenizer, the template's text, every data setting,
the stop tokens and this room's own code: an edited line is never missed, and nothing has to be
cleared by hand. Data that is not in local files has no bytes to look at and is not kept. An entry
is written beside its place and moved there in one step: two processes cannot spoil each other's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lora_sft.data.account import Account
from lora_sft.data.corpus import Corpus, build_corpus
from lora_sft.data.local_files import find_local_files
from lora_sft.data.rendering import hash_template, reads_clock
from lora_sft.data.supervision import read_day
from lora_sft.log import say

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, DatasetSection

VARIABLE = "LORA_SFT_CACHE"
DESCRIPTION = "corpus.json"
SPLITS = ("train", "validation", "test")


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
    files = _list_files(data)
    if files is None:
        reason = "not all of its data is in local files"
        return CachedCorpus(build_corpus(data, tokenizer, stops), None, False, reason)
    folder = find_cache_folder() / make_key(data, tokenizer, stops, files)
    kept = _load(folder)
    if kept is not None:
        return CachedCorpus(kept, folder, True)
    corpus = build_corpus(data, tokenizer, stops)
    try:
        _keep(corpus, folder)
    except OSError as error:
        reason = f"the cache cannot be written: {error}"
        say(f"{reason} (another folder: {VARIABLE})")
        return CachedCorpus(corpus, None, False, reason)
    return CachedCorpus(_load(folder) or corpus, folder, False)


def find_cache_folder() -> Path:
    """`$LORA_SFT_CACHE`, else `lora-sft` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(VARIABLE) or Path(user) / "lora-sft") / "corpus"


def make_key(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: frozenset[int],
    files: Iterable[tuple[str, Path]],
) -> str:
    """A name that changes with anything that the tokens depend on."""
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
        "day": read_day(data).isoformat() if reads_clock(tokenizer) else "",
        "code": _hash_code(),
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


@cache
def _hash_code() -> str:
    """This room's own files: another rule, another corpus."""
    room = sorted(Path(__file__).parent.glob("*.*"))
    return _hash_text("".join(_hash_file(path) for path in room if path.is_file()))


# --- one entry: an Arrow file a split, and a description with the hash of each -------------------


def _keep(corpus: Corpus, folder: Path) -> None:
    """Write an entry. Raises: OSError where it cannot be written."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = Path(tempfile.mkdtemp(prefix=".staged-", dir=folder.parent))
    try:
        hashes = {}
        for name, rows in _list_splits(corpus):
            _write_arrow(rows, staged / f"{name}.arrow")
            hashes[name] = _hash_file(staged / f"{name}.arrow")
        description = {
            "sha256": hashes,
            "accounts": {name: each.as_dict() for name, each in corpus.accounts.items()},
            "template_sha256": corpus.template_sha256,
            "stop_token_ids": sorted(corpus.stop_token_ids),
            "fingerprint": corpus.fingerprint,
            "warnings": list(corpus.warnings),
            "template_date": corpus.template_date,
        }
        (staged / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
        if folder.exists() and _load(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    except OSError:
        if not (folder / DESCRIPTION).exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _list_splits(corpus: Corpus) -> Iterator[tuple[str, Dataset]]:
    for name in SPLITS:
        rows = getattr(corpus, name)
        if rows is not None:
            yield name, rows


def _write_arrow(rows: Dataset, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file:
        table = rows.with_format("arrow")
        with pa.ipc.new_stream(file, rows.data.schema) as writer:
            for batch in table.iter(batch_size=10_000):
                writer.write_table(batch.cast(rows.data.schema))


def _load(folder: Path) -> Corpus | None:
    """The corpus of an entry; None where there is none, or its bytes are not what was written."""
    try:
        description: Mapping[str, Any] = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        for name, written in description["sha256"].items():
            if _hash_file(folder / f"{name}.arrow") != written:
                raise ValueError(f"{name}.arrow is not as it was written")
        splits = {name: _read_arrow(folder / f"{name}.arrow") for name in description["sha256"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        say(f"the cached corpus is damaged and is built anew: {folder} ({error})")
        return None
    return Corpus(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        accounts={name: Account(**each) for name, each in description["accounts"].items()},
        template_sha256=description["template_sha256"],
        stop_token_ids=frozenset(description["stop_token_ids"]),
        fingerprint=description["fingerprint"],
        warnings=tuple(description["warnings"]),
        template_date=description["template_date"],
    )


def _read_arrow(path: Path) -> Dataset:
    """The rows of a split, mapped into memory and not read."""
    with pa.memory_map(str(path)) as file:
        return Dataset(pa.ipc.open_stream(file).read_all())
