"""Make and read the record of an adapter's base model and training (`lora_sft.json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from lora_sft.export.public_text import make_public
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.model_files.adapter_config import read_adapter_config
from lora_sft.model_files.fingerprint import check_recorded_fingerprint, fingerprint_location
from lora_sft.model_files.json_files import read_json_object
from lora_sft.recipe import Recipe
from lora_sft.recipe.schema import Dtype

if TYPE_CHECKING:
    # It imports datasets, which a merge does not need.
    from lora_sft.data.corpus.building import Corpus

_COPY_AGAIN = "copy or download the adapter again"


@dataclass(frozen=True)
class AdapterOrigin:
    """The base model of an adapter, and the training of the adapter.

    It holds no trust in remote code: the person who uses the adapter decides that.

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
    dtype: Dtype | None = None
    quantization: Mapping[str, Any] | None = None
    stop_token_ids: Sequence[int] = ()
    chat_template_kwargs: Mapping[str, Any] | None = None
    export_dtype: Dtype | None = None
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

    Raises:
        ExportError: If the folder does not hold an adapter.
        ModelError: If a file is damaged.
    """
    config = read_adapter_config(folder)
    if (folder / ORIGIN_FILE).exists():
        return _parse_origin(folder / ORIGIN_FILE)
    return AdapterOrigin(config.get("base_model_name_or_path") or "", config.get("revision"))


def _parse_origin(path: Path) -> AdapterOrigin:
    """Return the record in a `lora_sft.json`; fields that it does not know are ignored.

    Raises: ModelError if the file is damaged.
    """
    kinds = get_type_hints(AdapterOrigin)
    record = read_json_object(path, kinds, required=("model_name_or_path",), fix=_COPY_AGAIN)
    fingerprint = record.get("base_fingerprint")
    if fingerprint is not None:
        check_recorded_fingerprint(fingerprint, path, _COPY_AGAIN)
    return AdapterOrigin(**{name: record[name] for name in record.keys() & kinds.keys()})


def make_adapter_origin(recipe: Recipe, corpus: Corpus) -> AdapterOrigin:
    """Return the origin of the adapter that this recipe trains."""
    return AdapterOrigin(
        model_name_or_path=recipe.model.location,
        revision=recipe.model.revision,
        dtype=recipe.model.dtype,
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
