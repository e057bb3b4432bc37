"""The base as it lies on disk: its config, its safetensors files, and a fingerprint of both.

Nothing of it is loaded: the headers say what is there. The fingerprint is kept with an adapter, so
that a merge knows another base by its content, whatever it is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lora_sft.errors import ExportError, ModelError
from lora_sft.log import say
from lora_sft.model_files.stored_tensors import StoredTensor, TensorReader, read_header

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
NUM_SAMPLED_TENSORS = 32  # whose hashes are kept one by one, to name what differs
SAMPLED_BYTES = 4096  # from the begin, the middle and the end of each tensor
HASH_DIGITS = 16


@dataclass(frozen=True)
class BaseCheckpoint:
    """Where a base lies and what its files hold, in the files' own order."""

    location: str
    revision: str | None
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def stored_quantization(self) -> str | None:
        """The method by which the base is stored quantised, or None."""
        stored = self.config.get("quantization_config")
        if not stored:
            return None
        method = stored.get("quant_method")
        if method in (None, "bitsandbytes"):
            return "bitsandbytes"
        return str(method)

    @cached_property
    def main_dtype(self) -> torch.dtype:
        """The dtype that most of the base's numbers have."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            if tensor.is_number:
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.num_elements
        return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32

    @cached_property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @cached_property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values() if tensor.is_number)


def read_base_checkpoint(location: str, revision: str | None = None) -> BaseCheckpoint:
    """The base at a folder or hub id (fetched into the hub's cache where it is not there yet).

    Raises: ModelError where there is none, or none in safetensors.
    """
    config_path = _find_file(location, revision, CONFIG_FILE)
    if config_path is None:
        raise ModelError(
            "cannot find the base: no config.json there",
            location,
            "name its folder with --base PATH, or a hub id that this machine can reach",
        )
    config = json.loads(config_path.read_text(encoding="utf-8"))
    files = tuple(_find_files(location, revision))
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(file))
    return BaseCheckpoint(location, revision, config, files, tensors)


def _find_files(location: str, revision: str | None) -> list[Path]:
    index = _find_file(location, revision, INDEX_FILE)
    if index is not None:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        found = {name: _find_file(location, revision, name) for name in dict.fromkeys(names)}
        lost = [name for name, path in found.items() if path is None]
        if lost:
            raise ModelError(
                f"{len(lost)} files of the base are missing (first: {lost[0]})",
                location,
                "download the model again",
            )
        return [path for path in found.values() if path is not None]
    single = _find_file(location, revision, WEIGHTS_FILE)
    if single is None:
        raise ModelError(
            f"the base has no weights in safetensors ({WEIGHTS_FILE} or its index)",
            location,
            "convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    return [single]


def _find_file(location: str, revision: str | None, name: str) -> Path | None:
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


def fingerprint_location(location: str, revision: str | None) -> dict[str, Any] | None:
    """The fingerprint of the base there; None, and a warning, where its files are no safetensors
    in the usual names (a merge will not find them either)."""
    try:
        return fingerprint_base(read_base_checkpoint(location, revision))
    except (ModelError, ExportError) as error:
        say(f"warning: the base's fingerprint is not kept with the adapter: {error.what}")
        return None


def fingerprint_base(base: BaseCheckpoint) -> dict[str, Any]:
    """What tells this base from another: one hash over all, and some tensors' own.

    Every tensor counts with its name, dtype, shape and three samples of its bytes, so that the
    hash is the same however the files are cut, and costs no reading of the whole model.
    """
    whole = hashlib.sha256()
    names = sorted(base.tensors)
    step = max(1, len(names) // NUM_SAMPLED_TENSORS)
    kept = set(names[::step][:NUM_SAMPLED_TENSORS])
    samples = {}
    with TensorReader() as reader:
        for name in names:
            digest = _hash_tensor(base.tensors[name], reader)
            whole.update(f"{name} {digest}\n".encode())
            if name in kept:
                samples[name] = digest[:HASH_DIGITS]
    return {"sha256": whole.hexdigest(), "tensors": len(names), "samples": samples}


def _hash_tensor(tensor: StoredTensor, reader: TensorReader) -> str:
    digest = hashlib.sha256(f"{tensor.dtype_code} {tensor.shape}".encode())
    size = min(SAMPLED_BYTES, tensor.num_bytes)
    for start in (0, (tensor.num_bytes - size) // 2, tensor.num_bytes - size):
        digest.update(reader.read_bytes(tensor, start, size))
    return digest.hexdigest()


def check_fingerprint(base: BaseCheckpoint, recorded: Mapping[str, Any], where: str) -> None:
    """Raises: ExportError, naming a tensor, where the adapter was trained on another base."""
    found = fingerprint_base(base)
    if found["sha256"] == recorded["sha256"]:
        return
    raise ExportError(
        f"this is not the base that the adapter was trained on: {_name_difference(base, recorded)}",
        f"{where} ({base.location})",
        "give the base of the training with --base; --allow-other-base merges all the same",
    )


def _name_difference(base: BaseCheckpoint, recorded: Mapping[str, Any]) -> str:
    with TensorReader() as reader:
        for name, digest in recorded["samples"].items():
            if name not in base.tensors:
                return f"it has no tensor {name}"
            if not _hash_tensor(base.tensors[name], reader).startswith(digest):
                return f"{name} has other values, shape or dtype"
    return f"it has {len(base.tensors)} tensors ({recorded['tensors']} then), or others differ"
