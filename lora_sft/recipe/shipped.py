"""Find the files that are part of the package: beside the source code, or inside the wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PREFIX = "lora_sft://"


def find_shipped_folder(name: str) -> Path | None:
    """Return the shipped folder `recipes` or `ds_configs`, or None if it is not installed."""
    for folder in (PACKAGE / "_shipped" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    return None


def find_shipped_policy(name: str) -> Path | None:
    """Return the file of a shipped DeepSpeed policy such as `zero2_offload`, or None."""
    folder = find_shipped_folder("ds_configs")
    file = folder / f"{name}.json" if folder is not None and name.isidentifier() else None
    return file if file is not None and file.is_file() else None


def list_shipped_policies() -> list[str]:
    """Return the names of the shipped DeepSpeed policies."""
    folder = find_shipped_folder("ds_configs")
    return sorted(file.stem for file in folder.glob("*.json")) if folder is not None else []


def expand_prefix(text: str) -> str:
    """Return the path in the package for a text such as `lora_sft://quickstart/base`.

    Other texts are returned unchanged.
    """
    return str(PACKAGE / text.removeprefix(PREFIX)) if text.startswith(PREFIX) else text
