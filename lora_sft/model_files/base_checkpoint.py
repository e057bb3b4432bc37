"""Read the config of a base model and the headers of its safetensors files.

The headers give the name, shape and dtype of every tensor. No weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
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

INDEX_SUFFIX = ".safetensors.index.json"
NAMED_WEIGHTS = "transformers_weights"  # a field of the config that names another file of weights
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
    NAMED_WEIGHTS: str | None,
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
    files = tuple(_find_files(location, revision, _find_named_weights(config, config_path)))
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(file, ModelError))
    return BaseCheckpoint(location, revision, config, files, tensors)


def find_damage(folder: str | Path) -> ModelError | None:
    """Return an error that names a damaged file of a model in a folder; None if there is none.

    Both configs, the index and the headers of the weights are read. A missing file is not damage.
    """
    folder = Path(folder)
    path = folder / MODEL_CONFIG_FILE
    try:
        config = read_model_config(path) if path.exists() else {}
        read_generation_settings(folder / GENERATION_CONFIG_FILE)
        named = _find_named_weights(config, path)
        for name in (named,) if named else (MODEL_WEIGHTS_FILE, MODEL_WEIGHTS_INDEX_FILE):
            if (folder / name).exists():
                _read_headers(folder, name)
    except ModelError as error:
        return error
    return None


def _read_headers(folder: Path, name: str) -> None:
    """Read the header of a file of weights, or those of the existing files that an index names."""
    names = _read_shard_names(folder / name) if name.endswith(INDEX_SUFFIX) else [name]
    for path in (folder / each for each in names):
        if path.exists():
            read_header(path, ModelError)


def _find_named_weights(config: Mapping[str, Any], path: Path) -> str | None:
    """Return the file of weights that a config names, if any."""
    named: str | None = config.get(NAMED_WEIGHTS)
    if named is not None:
        _check_inside(named, path)
    return named


def _find_files(location: str, revision: str | None, named: str | None) -> list[Path]:
    """Return the files that transformers loads: those that the config names, else the usual ones.

    Source: transformers 5.23 `_get_resolved_checkpoint_files`.
    """
    for name in (named,) if named else (MODEL_WEIGHTS_FILE, MODEL_WEIGHTS_INDEX_FILE):
        path = find_model_file(location, revision, name)
        if path is not None and name.endswith(INDEX_SUFFIX):
            return _find_shards(location, revision, path)
        if path is not None:
            return [path]
    raise ModelError(
        f"the base model has no weights in safetensors format ({MODEL_WEIGHTS_FILE} or its index)",
        location,
        "convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
    )


def _find_shards(location: str, revision: str | None, index: Path) -> list[Path]:
    names = _read_shard_names(index)
    found = {name: find_model_file(location, revision, name) for name in names}
    lost = [name for name, path in found.items() if path is None]
    if lost:
        raise ModelError(
            f"{len(lost)} files of the base model are missing (first: {lost[0]})",
            location,
            "download the model again",
        )
    return [path for path in found.values() if path is not None]


def check_indexes(location: str, revision: str | None, named: str | None = None) -> None:
    """Check the indexes of a model's weights before a load.

    transformers would follow a name such as `../other.safetensors`.

    Args:
        location: A folder, or a hub id.
        revision: The revision of the hub id.
        named: The file of weights that the config names, if any.

    Raises: ModelError if an index names a file outside of the folder.
    """
    for name in (MODEL_WEIGHTS_INDEX_FILE, named):
        if name is not None and name.endswith(INDEX_SUFFIX):
            index = find_model_file(location, revision, name)
            if index is not None:
                _read_shard_names(index)


def _read_shard_names(index: Path) -> list[str]:
    """Return the file names in an index, each once.

    Raises: ModelError if the index cannot be read, or names a file outside of its folder.
    """
    document = read_json_object(
        index,
        {"weight_map": dict[str, str], "metadata": dict[str, Any] | None},
        required=("weight_map",),
        fix=DOWNLOAD_AGAIN,
    )
    names = list(dict.fromkeys(document["weight_map"].values()))
    for name in names:
        _check_inside(name, index)
    return names


def _check_inside(name: Any, where: Path) -> None:
    """Check that a name in an index or a config is the name of a file in the same folder.

    Raises: ModelError if it is not.
    """
    is_name = isinstance(name, str)
    if not is_name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ModelError(
            f"{where.name} names a file of weights outside of its folder: {name}",
            str(where),
            "download the model again, and do not trust who made this folder",
        )


def read_model_config(path: Path) -> dict[str, Any]:
    """Return the content of the `config.json` of a model.

    Raises: ModelError if the file is damaged.
    """
    config: dict[str, Any] = read_json_object(path, CONFIG_KINDS, fix=DOWNLOAD_AGAIN)
    return config


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
