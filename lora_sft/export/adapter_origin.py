"""What an adapter folder records about its base model and its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_sft.export.weights.adapter_reading import read_adapter_config
from lora_sft.file_names import ORIGIN_FILE

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class AdapterOrigin:
    """The base as it was when the adapter was trained on it."""

    model_name_or_path: str
    revision: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    quantization: Mapping[str, Any] | None = None
    stop_token_ids: Sequence[int] = ()
    chat_template_kwargs: Mapping[str, Any] | None = None
    export_dtype: str | None = None
    base_fingerprint: Mapping[str, Any] | None = None
    template_date: str | None = None
    recipe: Mapping[str, Any] | None = None
    account: Mapping[str, Any] | None = None


def read_origin(folder: Path) -> AdapterOrigin:
    """Where an adapter comes from: our own record, else what PEFT's config knows.

    Raises: ExportError where the folder is no adapter.
    """
    config = read_adapter_config(folder)
    if (folder / ORIGIN_FILE).exists():
        record = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        known = {field.name for field in fields(AdapterOrigin)}
        return AdapterOrigin(**{name: record[name] for name in record.keys() & known})
    return AdapterOrigin(config.get("base_model_name_or_path") or "", config.get("revision"))
