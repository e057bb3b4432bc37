"""Where the files that travel with the package are: beside the source, or inside the wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PREFIX = "lora_sft://"


def find_shipped_folder(name: str) -> Path | None:
    """The shipped folder `recipes` or `ds_configs`, or None where it does not travel along."""
    for folder in (PACKAGE / "_shipped" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    return None


def expand_prefix(text: str) -> str:
    """`lora_sft://quickstart/base` as a path inside the installed package; other text as it is."""
    return str(PACKAGE / text.removeprefix(PREFIX)) if text.startswith(PREFIX) else text
