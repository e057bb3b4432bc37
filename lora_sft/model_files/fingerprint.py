"""Fingerprint the weights of a base model from a sample of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lora_sft.errors import ExportError, ModelError
from lora_sft.log import say
from lora_sft.model_files.base_checkpoint import BaseCheckpoint, read_base_checkpoint
from lora_sft.model_files.byte_reading import ByteReader
from lora_sft.model_files.stored_tensors import StoredTensor

NUM_SAMPLED_TENSORS = 32  # whose hashes are kept one by one, to name what differs


SAMPLED_BYTES = 4096  # from the begin, the middle and the end of each tensor


HASH_DIGITS = 16


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
    with ByteReader() as reader:
        for name in names:
            digest = _hash_tensor(base.tensors[name], reader)
            whole.update(f"{name} {digest}\n".encode())
            if name in kept:
                samples[name] = digest[:HASH_DIGITS]
    return {"sha256": whole.hexdigest(), "tensors": len(names), "samples": samples}


def _hash_tensor(tensor: StoredTensor, reader: ByteReader) -> str:
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
    with ByteReader() as reader:
        for name, digest in recorded["samples"].items():
            if name not in base.tensors:
                return f"it has no tensor {name}"
            if not _hash_tensor(base.tensors[name], reader).startswith(digest):
                return f"{name} has other values, shape or dtype"
    return f"it has {len(base.tensors)} tensors ({recorded['tensors']} then), or others differ"
