"""Find what a path in a recipe means: a local file or folder first, then a URL, then a Hub id.

A relative path starts from the folder of the file that contains it. So a recipe in any folder can
extend this file. A text that looks like a path but leads nowhere is reported here. Otherwise the
Hub would be asked for a repository called `../data/train.jsonl`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lora_sft.recipe.shipped import PREFIX, expand_prefix
from lora_sft.recipe.written import COMMAND_LINE, Origin

PLAIN_TEMPLATE = "plain"
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")
_GLOB_CHARACTERS = frozenset("*?[")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_NOUNS = {
    "model": "folder",
    "data": "file, folder or glob",
    "template": "template file",
    "deepspeed": "DeepSpeed file",
}


def locate(text: str, folder: Path, kind: str) -> str | None:
    """Return the location of a path: an absolute local path, or the URL or Hub id as written.

    Returns None if the path leads nowhere.
    """
    if kind == "template" and text == PLAIN_TEMPLATE:
        return text
    local = _find_local(text, folder, kind)
    if local is not None:
        return local
    if text.startswith(PREFIX) or kind in ("template", "deepspeed"):
        return None
    if kind == "data" and _URL.match(text):
        return text
    return text if _HUB_ID.fullmatch(text) and not _looks_like_path(text, kind) else None


def is_local(location: str) -> bool:
    """Return whether a location is a local path.

    Local locations are absolute paths. URLs and Hub ids never are.
    """
    return Path(location).is_absolute()


def is_fixed(location: str, revision: str | None) -> bool:
    """Return whether a model is a local path, or a Hub id at a revision that does not move."""
    is_folder = is_local(location) or Path(location).is_dir()
    return is_folder or revision not in (None, "", "main", "master")


def is_hub_id(location: str) -> bool:
    """Return whether a location is a Hub id."""
    return not is_local(location) and not _URL.match(location)


def describe_missing(text: str, origin: Origin, kind: str) -> tuple[str, str]:
    """Return the fault and the fix for a path that leads nowhere."""
    if kind == "template" and ("{{" in text or "{%" in text):
        return "a chat template is a file, not text in the recipe", "save it as a .jinja file"
    what = f'no such {_NOUNS[kind]}: "{text}"'
    here = _find_local(text, Path.cwd(), kind)
    if here is not None and origin.file != COMMAND_LINE:
        there = os.path.relpath(here, origin.folder)
        return what, f"write {there} (a path starts from the folder of the file that contains it)"
    near = find_similar(text, origin.folder)
    if near is not None:
        return what, f"did you mean {near}?"
    looked_at = make_absolute(text, origin.folder)
    return what, f"create {looked_at} or correct the path"


def _find_local(text: str, folder: Path, kind: str) -> str | None:
    if not text or (_URL.match(text) and not text.startswith(PREFIX)):
        return None
    path = make_absolute(text, folder)
    exists = {"model": path.is_dir, "data": path.exists}.get(kind, path.is_file)
    if exists() or (kind == "data" and _matches_any_file(str(path))):
        return str(path)
    return None


def make_absolute(text: str, folder: Path | str = "") -> Path:
    """Return `text` as an absolute path that starts from `folder`.

    Symbolic links are not resolved, so that messages show the path as written.
    """
    path = Path(expand_prefix(text))
    if text.startswith("~"):
        path = path.expanduser()
    return Path(os.path.normpath(Path.cwd() / folder / path))


def _matches_any_file(pattern: str) -> bool:
    if not _GLOB_CHARACTERS & set(pattern):
        return False
    from glob import iglob  # imported late: few recipes use a glob

    return next(iglob(pattern, recursive=True), None) is not None  # noqa: PTH207, absolute


def _looks_like_path(text: str, kind: str) -> bool:
    if text.startswith(("./", "../", "/", "~")) or text in (".", "..") or text.count("/") > 1:
        return True
    if kind != "data":
        return False
    name = Path(text)
    if name.suffix in COMPRESSED_SUFFIXES:
        name = Path(name.stem)
    return name.suffix in DATA_SUFFIXES or bool(_GLOB_CHARACTERS & set(text))


def find_similar(text: str, folder: Path) -> str | None:
    """Return the path with its last part replaced by the most similar existing name, or None."""
    from difflib import get_close_matches  # imported late: only errors need it

    path = make_absolute(text, folder)
    try:
        names = [neighbour.name for neighbour in path.parent.iterdir()]
    except OSError:
        return None
    matches = get_close_matches(path.name, names, n=1, cutoff=0.6)
    if not matches:
        return None
    prefix = PREFIX if text.startswith(PREFIX) else ""  # `Path` would turn `//` into `/`
    return prefix + str(Path(text.removeprefix(prefix)).parent / matches[0])
