"""What travels with a base besides its weights: licence, notices, its own config, its tokenizer.

A derivative carries the licence of what it derives from; converters want the `tokenizer.model`
that transformers 5 no longer writes; and the base's own `config.json` and
`generation_config.json` say things that a library drops when it saves them anew.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lora_sft.file_names import (
    CARD_FILE,
    GENERATION_CONFIG_FILE,
    MODEL_CONFIG_FILE,
    SENTENCEPIECE_FILE,
)

CONFIGS = (MODEL_CONFIG_FILE, GENERATION_CONFIG_FILE)
CARRIED_OVER = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", SENTENCEPIECE_FILE)
CODE = "*.py"  # of a base with classes of its own, which its config names in `auto_map`
LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class BaseFiles:
    """The small files of a base, in a folder or in the hub's cache; None where out of reach."""

    folder: Path | None

    @classmethod
    def find(cls, location: str, revision: str | None = None) -> BaseFiles:
        """The files of a local base, or of a hub id (fetched where the hub can be reached)."""
        if Path(location).is_dir():
            return cls(Path(location))
        try:
            wanted = [*CARRIED_OVER, *CONFIGS, CARD_FILE, CODE]
            return cls(Path(snapshot_download(location, revision=revision, allow_patterns=wanted)))
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            return cls(None)

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the base's JSON files, empty where there is none."""
        return read_json(self.folder / name) if self.folder is not None else {}

    def copy_to(self, folder: Path) -> list[str]:
        """Copy licence, notices, sentencepiece model and own classes; the names, in order."""
        if self.folder is None:
            return []
        has_code = "auto_map" in self.read_json(MODEL_CONFIG_FILE)
        patterns = (*CARRIED_OVER, CODE) if has_code else CARRIED_OVER
        found = sorted({path for each in patterns for path in self.folder.glob(each)})
        found = [path for path in found if path.is_file()]
        for path in found:
            shutil.copyfile(path, folder / path.name)
        return [path.name for path in found]

    def read_licence(self) -> Mapping[str, str]:
        """`license`, `license_name` and `license_link` as the head of the base's card has them.

        Only plain scalars are read (a list of licences stays with the base's own card), so no
        YAML reader is needed here.
        """
        card = self.folder / CARD_FILE if self.folder is not None else None
        if card is None or not card.is_file():
            return {}
        head = re.match(r"---\s*\n(.*?)\n---\s*\n", card.read_text(encoding="utf-8"), re.DOTALL)
        lines = head[1].splitlines() if head else []
        pairs = (line.partition(":")[::2] for line in lines if not line.startswith((" ", "-")))
        return {key: value.strip() for key, value in pairs if key in LICENCE_KEYS and value.strip()}


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object, empty where there is no such file."""
    if not path.is_file():
        return {}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
