"""Write small recipes to disk, read them, and return their faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_sft.errors import Fault, RecipeError
from lora_sft.recipe import Recipe, read_recipe

SMALLEST = """\
model: some/model
data:
  datasets:
    - path: some/data
  max_length: 128
"""


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, *overrides: str) -> Recipe:
    return read_recipe(write(folder, text), overrides)


def read_smallest(folder: Path, *overrides: str) -> Recipe:
    return read(folder, SMALLEST, *overrides)


def faults_of(folder: Path, text: str, *overrides: str) -> list[Fault]:
    """Return the faults of a recipe. Their `where` does not contain the folder."""
    with pytest.raises(RecipeError) as caught:
        read(folder, text, *overrides)
    return [
        Fault(fault.what, fault.where.replace(f"{folder}/", ""), fault.fix)
        for fault in caught.value.faults
    ]


def fault_of(folder: Path, text: str, *overrides: str) -> Fault:
    faults = faults_of(folder, text, *overrides)
    assert len(faults) == 1, [fault.what for fault in faults]
    return faults[0]
