"""Find and copy the small files of a base model: licence, notices, configs, tokenizer, own code.

A derived model must carry the licence of its base model. Converters need `tokenizer.model`, which
transformers 5 no longer writes. The base model's own `config.json` and `generation_config.json`
have fields that a library drops when it saves them again.

No link that leads out of the model's folder is followed, because the files are for publication.
"""

from __future__ import annotations

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
from lora_sft.folder_links import leads_outside
from lora_sft.log import say
from lora_sft.model_files.base_checkpoint import CONFIG_KINDS
from lora_sft.model_files.generation_settings import KINDS as GENERATION_KINDS
from lora_sft.model_files.json_files import read_json_object
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.yaml_reader import read_yaml_value

CONFIGS = (MODEL_CONFIG_FILE, GENERATION_CONFIG_FILE)
COPIED_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", SENTENCEPIECE_FILE)
CODE_PATTERN = "*.py"  # classes of a model with remote code; its config names them in `auto_map`
LICENCE_KEYS = ("license", "license_name", "license_link")
KINDS_BY_FILE = {MODEL_CONFIG_FILE: CONFIG_KINDS, GENERATION_CONFIG_FILE: GENERATION_KINDS}
_LICENCE_LINK = re.compile(r"https?://[^\s\"'<>`\\]+|[\w.-]+")  # a web page, or a file


@dataclass(frozen=True)
class BaseFiles:
    """The small files of a base model.

    Attributes:
        folder: The folder that holds them; None if the model cannot be reached.
    """

    folder: Path | None

    @classmethod
    def find(cls, location: str, revision: str | None = None) -> BaseFiles:
        """Find the files of a local model, or download those of a hub id."""
        if Path(location).is_dir():
            return cls(Path(location))
        try:
            wanted = [*COPIED_PATTERNS, *CONFIGS, CARD_FILE, CODE_PATTERN]
            return cls(Path(snapshot_download(location, revision=revision, allow_patterns=wanted)))
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
            return cls(None)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; empty if the file does not exist."""
        path = self._find(name)
        return read_json(path) if path is not None else {}

    def copy_to(self, folder: Path) -> list[str]:
        """Copy licence, notices, sentencepiece model and own code. Return the sorted file names."""
        if self.folder is None:
            return []
        has_code = "auto_map" in self.read_json(MODEL_CONFIG_FILE)
        patterns = (*COPIED_PATTERNS, CODE_PATTERN) if has_code else COPIED_PATTERNS
        names = sorted({path.name for each in patterns for path in self.folder.glob(each)})
        found = [path for name in names if (path := self._find(name)) is not None]
        for path in found:
            shutil.copyfile(path, folder / path.name)
        return [path.name for path in found]

    def read_licence(self) -> Mapping[str, str]:
        """Return `license`, `license_name` and `license_link` from the head of the model's card.

        Only texts in one line are read. A list of licences is ignored, and so is a link that leads
        neither to a file of the model nor to a web page.
        """
        card = self._find(CARD_FILE)
        if card is None:
            return {}
        text = card.read_text(encoding="utf-8", errors="replace")
        head = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*\n", text, re.DOTALL)
        pairs = (line.partition(":")[::2] for line in head[1].split("\n")) if head else ()
        found = {key: _read_yaml_text(value) for key, value in pairs if key in LICENCE_KEYS}
        if not _LICENCE_LINK.fullmatch(found.get("license_link", "")):
            found.pop("license_link", None)
        return {key: value for key, value in found.items() if value}

    def _find(self, name: str) -> Path | None:
        """Return a file of the folder; None if it is missing, or a link to a file elsewhere."""
        if self.folder is None or not (self.folder / name).is_file():
            return None
        if leads_outside(self.folder / name, self.folder):
            say(f"warning: {self.folder / name} is not used: it is a link to a file elsewhere")
            return None
        return self.folder / name


def _read_yaml_text(value: str) -> str:
    """Return the text that a line of YAML gives to its key; empty if it is not a text."""
    read = read_yaml_value(value.strip(), FaultList(), "")
    return read.value.strip() if read is not None and isinstance(read.value, str) else ""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; empty if the file does not exist.

    Raises: ModelError if the file is damaged.
    """
    document: dict[str, Any] = (
        read_json_object(path, KINDS_BY_FILE.get(path.name)) if path.is_file() else {}
    )
    return document
