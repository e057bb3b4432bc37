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


def find_shipped_policy(name: str) -> Path | None:
    """The DeepSpeed policy `zero2_offload`, say; None where `name` is none of the shipped ones."""
    folder = find_shipped_folder("ds_configs")
    file = folder / f"{name}.json" if folder is not None and name.isidentifier() else None
    return file if file is not None and file.is_file() else None


def list_shipped_policies() -> list[str]:
    """The names that `train.deepspeed` takes."""
    folder = find_shipped_folder("ds_configs")
    return sorted(file.stem for file in folder.glob("*.json")) if folder is not None else []


def expand_prefix(text: str) -> str:
    """`lora_sft://quickstart/base` as a path inside the installed package; other text as it is."""
    return str(PACKAGE / text.removeprefix(PREFIX)) if text.startswith(PREFIX) else text
