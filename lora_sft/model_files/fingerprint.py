"""Fingerprint the weights of a base model from a sample of their bytes.

The fingerprint is saved with an adapter. A merge then recognises the base model by its content and
not by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.errors import ExportError, ModelError
from lora_sft.log import say
from lora_sft.model_files.base_checkpoint import BaseCheckpoint, read_base_checkpoint
from lora_sft.model_files.byte_reading import ByteReader
from lora_sft.model_files.json_files import check_fields
from lora_sft.model_files.stored_tensors import StoredTensor

NUM_SAMPLED_TENSORS = 32  # tensors with a hash of their own, so that an error can name one
SAMPLED_BYTES = 4096  # per sample, at the beginning, middle and end of each tensor
HASH_DIGITS = 16


def fingerprint_location(location: str, revision: str | None) -> dict[str, Any] | None:
    """Return the fingerprint of the base model at a folder or hub id.

    Return None and print a warning if it has no safetensors files under the usual names. A merge
    cannot find such files either.
    """
    try:
        return fingerprint_base(read_base_checkpoint(location, revision))
    except (ModelError, ExportError) as error:
        say(f"warning: the adapter is saved without the base model's fingerprint: {error.what}")
        return None


def fingerprint_base(base: BaseCheckpoint) -> dict[str, Any]:
    """Return one hash over all tensors, and one hash each for some tensors.

    The hashes cover the name, dtype and shape of each tensor, and three samples of its bytes. They
    do not depend on how the weights are split into files. Most bytes are never read.
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
    """Check that a base model is the one that the adapter was trained on.

    Raises: ExportError that names a difference.
    """
    found = fingerprint_base(base)
    if found["sha256"] == recorded["sha256"]:
        return
    raise ExportError(
        "this is not the base model that the adapter was trained on: "
        f"{_describe_difference(base, recorded)}",
        f"{where} ({base.location})",
        "give the right base model with --base, or add --allow-other-base to merge with this one",
    )


def check_recorded_fingerprint(recorded: Mapping[str, Any], path: Path, fix: str) -> None:
    """Check the fields of a fingerprint that was read from a file.

    Raises: ModelError that names the file and the field.
    """
    kinds = {"sha256": str, "samples": dict[str, str]}
    check_fields(recorded, path, kinds, required=tuple(kinds), fix=fix)


def _describe_difference(base: BaseCheckpoint, recorded: Mapping[str, Any]) -> str:
    with ByteReader() as reader:
        for name, digest in recorded["samples"].items():
            if name not in base.tensors:
                return f"it has no tensor {name}"
            if not _hash_tensor(base.tensors[name], reader).startswith(digest):
                return f"{name} has other values, shape or dtype"
    return (
        f"its tensors are not the {recorded['tensors']} recorded ones (it has {len(base.tensors)})"
    )
