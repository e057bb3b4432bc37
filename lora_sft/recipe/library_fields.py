"""The settings of SFTConfig, LoraConfig and BitsAndBytesConfig, without importing them.

They come from a snapshot beside this file, made by `tools/snapshot_library_fields.py` from the
installed libraries; a test compares the two.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from lora_sft.recipe.fields import Field

SNAPSHOT = Path(__file__).with_name("library_fields.json")


@cache
def read_snapshot() -> dict[str, Any]:
    """The snapshot as plain data: `versions`, then one group for each class."""
    snapshot: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return snapshot


@cache
def library_fields(config_class: str) -> dict[str, Field]:
    """Every setting of one library class, by name."""
    return {name: _make(entry) for name, entry in read_snapshot()[config_class].items()}


def _make(entry: dict[str, Any]) -> Field:
    return Field(
        types=tuple(entry["types"]),
        choices=tuple(entry.get("choices", ())),
        items=entry.get("items", ""),
        default=entry.get("default"),
        python_class=entry.get("python_class", ""),
    )
