"""The settings of SFTConfig, LoraConfig and BitsAndBytesConfig, without importing the libraries.

They come from the snapshot `library_fields.json`, which `tools/snapshot_library_fields.py` makes
from the installed libraries. A test compares the snapshot with the libraries.
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
    """Return the snapshot as plain data: `versions`, and one group per class."""
    snapshot: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return snapshot


@cache
def library_fields(config_class: str) -> dict[str, Field]:
    """Return every setting of one library class, by name."""
    return {name: _make(entry) for name, entry in read_snapshot()[config_class].items()}


def _make(entry: dict[str, Any]) -> Field:
    return Field(
        types=tuple(entry["types"]),
        choices=tuple(entry.get("choices", ())),
        items=entry.get("items", ""),
        default=entry.get("default"),
        python_class=entry.get("python_class", ""),
    )
