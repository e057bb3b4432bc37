"""Record everything in a base model's folder that changes the numbers of a run.

A run that continues compares its base with this record. The fingerprint that an adapter carries
(`fingerprint`) reads a sample of the weights, because a merge needs no more; this record covers
every byte of the weights, and the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.errors import ExportError, ModelError
from lora_sft.model_files.base_checkpoint import read_base_checkpoint
from lora_sft.model_files.file_hashes import hash_files

# Fields of a config that change no number: names and versions, and what the recipe decides instead.
FIELDS_WITHOUT_EFFECT = frozenset(
    (
        *("_name_or_path", "name_or_path", "_commit_hash", "architectures", "use_cache"),
        *("transformers_version", "torch_dtype", "dtype"),
        *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset"),
        *("_experts_implementation", "experts_implementation"),
    )
)


@dataclass(frozen=True)
class BaseRecord:
    """The content of a base model.

    Attributes:
        config: The fields of its `config.json` that change a number.
        weights: The hash of each file of weights, by file name.
        code: The hash of each Python file, if the model runs its own code.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, str]
    code: Mapping[str, str]


def record_base(
    location: str, revision: str | None, *, runs_own_code: bool = False
) -> BaseRecord | None:
    """Return the record of the base model at a folder or hub id.

    Return None if it has no safetensors files under the usual names.

    Args:
        location: A folder, or a hub id.
        revision: The revision of the hub id.
        runs_own_code: Whether the Python files of the model are trusted. Those of a hub id need no
            hash: they run only from a fixed revision.
    """
    try:
        base = read_base_checkpoint(location, revision)
    except (ModelError, ExportError):
        return None
    code = sorted(Path(location).glob("*.py")) if runs_own_code else []
    return BaseRecord(keep_effective(base.config), hash_files(base.files), hash_files(code))


def keep_effective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, and the configs inside it, without the fields that change no number."""
    return {
        name: keep_effective(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in FIELDS_WITHOUT_EFFECT
    }
