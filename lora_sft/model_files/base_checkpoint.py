"""Read the config of a base model and the headers of its safetensors files.

The headers give the name, shape and dtype of every tensor. No weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_sft.errors import ModelError
from lora_sft.file_names import (
    GENERATION_CONFIG_FILE,
    MODEL_CONFIG_FILE,
    MODEL_WEIGHTS_FILE,
    MODEL_WEIGHTS_INDEX_FILE,
)
from lora_sft.model_files.generation_settings import read_generation_settings
from lora_sft.model_files.json_files import Kinds, read_json_object
from lora_sft.model_files.stored_tensors import StoredTensor, read_header

DOWNLOAD_AGAIN = "download or copy the base model again"
# The fields of a config that lora-sft itself reads.
CONFIG_KINDS: Kinds = {
    "auto_map": dict[str, Any] | None,
    "dtype": str | None,
    "eos_token_id": int | list[int] | None,
    "model_type": str | None,
    "quantization_config": dict[str, Any] | None,
    "text_config": dict[str, Any] | None,
    "torch_dtype": str | None,
    "vocab_size": int | None,
}


@dataclass(frozen=True)
class BaseCheckpoint:
    """The config and the tensors of a base model on disk.

    Attributes:
        location: Its folder or its hub id.
        tensors: Name -> tensor, in the order of the files.
    """

    location: str
    revision: str | None
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def stored_quantization(self) -> str | None:
        """The method by which the stored weights are quantised, or None."""
        stored = self.config.get("quantization_config")
        if not stored:
            return None
        method = stored.get("quant_method")
        if method in (None, "bitsandbytes"):
            return "bitsandbytes"
        return str(method)

    @cached_property
    def main_dtype_name(self) -> str:
        """torch's name of the dtype that most of the weights have."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.is_plain_float:
                name = tensor.dtype_name
                counts[name] = counts.get(name, 0) + tensor.num_elements
        return max(counts, key=lambda name: counts[name]) if counts else "float32"

    @cached_property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @cached_property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values() if tensor.is_plain_float)


def read_base_checkpoint(location: str, revision: str | None = None) -> BaseCheckpoint:
    """Read the base model at a folder or a hub id. Download it if the hub's cache does not have it.

    Raises: ModelError if there is no model, or if its weights are not in safetensors files.
    """
    config_path = find_model_file(location, revision, MODEL_CONFIG_FILE)
    if config_path is None:
        raise ModelError(
            f"cannot find the base model: there is no {MODEL_CONFIG_FILE}",
            location,
            "give its folder with --base PATH, or a hub id that this machine can reach",
        )
    config = read_model_config(config_path)
    files = tuple(_find_files(location, revision))
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(file, ModelError))
    return BaseCheckpoint(location, revision, config, files, tensors)


def find_damage(folder: str | Path) -> ModelError | None:
    """Return an error that names a damaged file of a model in a folder; None if there is none.

    Both configs, the index and the headers of the weights are read. A missing file is not damage.
    """
    folder = Path(folder)
    config, index = folder / MODEL_CONFIG_FILE, folder / MODEL_WEIGHTS_INDEX_FILE
    try:
        if config.exists():
            read_model_config(config)
        read_generation_settings(folder / GENERATION_CONFIG_FILE)
        names = _read_index(index) if index.exists() else [MODEL_WEIGHTS_FILE]
        for name in names:
            if (folder / name).exists():
                read_header(folder / name, ModelError)
    except ModelError as error:
        return error
    return None


def _find_files(location: str, revision: str | None) -> list[Path]:
    index = find_model_file(location, revision, MODEL_WEIGHTS_INDEX_FILE)
    if index is not None:
        names = _read_index(index)
        found = {name: find_model_file(location, revision, name) for name in names}
        lost = [name for name, path in found.items() if path is None]
        if lost:
            raise ModelError(
                f"{len(lost)} files of the base model are missing (first: {lost[0]})",
                location,
                "download the model again",
            )
        return [path for path in found.values() if path is not None]
    single = find_model_file(location, revision, MODEL_WEIGHTS_FILE)
    if single is None:
        raise ModelError(
            "the base model has no weights in safetensors format "
            f"({MODEL_WEIGHTS_FILE} or its index)",
            location,
            "convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    return [single]


def read_model_config(path: Path) -> dict[str, Any]:
    """Return the content of the `config.json` of a model.

    Raises: ModelError if the file is damaged.
    """
    config: dict[str, Any] = read_json_object(path, CONFIG_KINDS, fix=DOWNLOAD_AGAIN)
    return config


def _read_index(index: Path) -> list[str]:
    """Return the names of the files of weights in an index, each once."""
    document = read_json_object(
        index,
        {"weight_map": dict[str, str], "metadata": dict[str, Any] | None},
        required=("weight_map",),
        fix=DOWNLOAD_AGAIN,
    )
    return list(dict.fromkeys(document["weight_map"].values()))


def find_model_file(location: str, revision: str | None, name: str) -> Path | None:
    """Return a file of a model folder or hub id (from the cache or the hub), or None."""
    if Path(location).is_dir():
        path = Path(location) / name
        return path if path.exists() else None
    if Path(location).is_absolute() or not location:
        return None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            location,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None
    return Path(found) if found else None
