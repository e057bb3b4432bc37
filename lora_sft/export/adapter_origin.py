"""Make and read the record of an adapter's base model and training (`lora_sft.json`)."""

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
    """The base model of an adapter, and the training of the adapter.

    Attributes:
        model_name_or_path: The folder or hub id of the base model.
        dtype: The base model's dtype in training.
        quantization: The base model's quantisation in training.
        stop_token_ids: Every token that ends a turn.
        export_dtype: The recipe's `export.dtype`.
        base_fingerprint: As `fingerprint_base` returns it.
        template_date: The recipe's `data.template_date`.
        recipe: The resolved recipe without local paths and secrets.
        account: The account of the training rows.
    """

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
        """The hash of the base model's weights; empty if it has no safetensors files."""
        return str((self.base_fingerprint or {}).get("sha256", ""))


def read_origin(folder: Path) -> AdapterOrigin:
    """Return the origin of an adapter, from `lora_sft.json` or else from PEFT's config.

    Raises: ExportError if the folder does not hold an adapter.
    """
    config = read_adapter_config(folder)
    if (folder / ORIGIN_FILE).exists():
        record = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        known = {field.name for field in fields(AdapterOrigin)}
        return AdapterOrigin(**{name: record[name] for name in record.keys() & known})
    return AdapterOrigin(config.get("base_model_name_or_path") or "", config.get("revision"))


def make_adapter_origin(recipe: Recipe, corpus: Corpus) -> AdapterOrigin:
    """Return the origin of the adapter that this recipe trains."""
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
        # For the model card, which must not quote rows or name files.
        account={**corpus.accounts["train"].as_dict(), "examples": {}, "sources": {}},
    )
