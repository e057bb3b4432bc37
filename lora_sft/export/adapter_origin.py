"""Make and read the record of an adapter's base model and training (`lora_sft.json`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from lora_sft.errors import ExportError
from lora_sft.export.public_text import make_public
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.model_files.adapter_config import read_adapter_config
from lora_sft.model_files.fingerprint import fingerprint_location
from lora_sft.recipe import Recipe

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
    dtype: str | None = None
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
        return _parse_origin(folder / ORIGIN_FILE)
    return AdapterOrigin(config.get("base_model_name_or_path") or "", config.get("revision"))


def _parse_origin(path: Path) -> AdapterOrigin:
    """Return the record in a `lora_sft.json`; fields that it does not know are ignored.

    Raises: ExportError if the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path.name} cannot be read: {error}", str(path), _COPY_AGAIN) from error
    if not isinstance(record, dict) or "model_name_or_path" not in record:
        raise ExportError(f"{path.name} does not name a base model", str(path), _COPY_AGAIN)
    kinds = get_type_hints(AdapterOrigin)
    values = {name: record[name] for name in record.keys() & kinds.keys()}
    for name, value in values.items():
        if not _is_of_kind(value, kinds[name]):
            what = f"{path.name}: {name} has the wrong type ({type(value).__name__})"
            raise ExportError(what, str(path), _COPY_AGAIN)
    return AdapterOrigin(**values)


def _is_of_kind(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has the type of a field, such as `Mapping[str, Any] | None`."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return any(_matches(value, get_origin(each) or each) for each in kinds)


def _matches(value: Any, kind: Any) -> bool:
    if kind is Sequence:
        return isinstance(value, list)
    return isinstance(value, kind)


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
