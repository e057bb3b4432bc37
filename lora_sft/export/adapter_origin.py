"""What an adapter folder records about its base model and its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_sft.export.public_text import make_public
from lora_sft.export.weights.adapter_reading import read_adapter_config
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.model_files.fingerprint import fingerprint_location
from lora_sft.recipe import Recipe

if TYPE_CHECKING:
    from lora_sft.data.corpus.building import (
        Corpus,
    )  # imports datasets, which a merge does not need


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

    @property
    def base_sha256(self) -> str:
        """The fingerprint of the base's weights; empty if it has no safetensors files."""
        return str((self.base_fingerprint or {}).get("sha256", ""))


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


def make_adapter_origin(recipe: Recipe, corpus: Corpus) -> AdapterOrigin:
    """What the merge must know of this run."""
    return AdapterOrigin(
        model_name_or_path=recipe.model.location,
        revision=recipe.model.revision,
        dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        quantization=recipe.quantization,
        stop_token_ids=sorted(corpus.stop_token_ids),
        chat_template_kwargs=recipe.data.chat_template_kwargs,
        export_dtype=recipe.export.dtype,
        base_fingerprint=fingerprint_location(recipe.model.location, recipe.model.revision),
        template_date=recipe.data.template_date,
        recipe=make_public(recipe.to_dict(absolute_paths=True)),
        # for the card, which quotes no row and names no file
        account={**corpus.accounts["train"].as_dict(), "examples": {}, "sources": {}},
    )
