"""Tensors as they lie in safetensors files: names, shapes, places, and their bytes in pieces.

The header of a safetensors file is eight bytes of length and one JSON document; the tensors follow
it, one after another (https://github.com/huggingface/safetensors, "Format"). It is read here and
not through the library because the library maps whole files into memory, and every page that is
touched counts as this process's; `pread` into a small buffer keeps a merge small for any model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from lora_sft.errors import ExportError

METADATA = "__metadata__"
LARGEST_HEADER_BYTES = 100_000_000  # the library's own bound
# safetensors' code of a dtype -> torch's name of it,.
DTYPE_NAMES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPE_CODES = {name: code for code, name in DTYPE_NAMES.items()}
# The dtypes that a merge may round. float8 and integers are codes of a quantisation, or counts.
NUMBERS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one file. `offset` counts bytes from the beginning of the file."""

    name: str
    dtype_code: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int

    @property
    def dtype_name(self) -> str:
        """torch's name of the dtype, without `torch.`."""
        return DTYPE_NAMES[self.dtype_code]

    @property
    def is_number(self) -> bool:
        return self.dtype_name in NUMBERS

    @cached_property
    def num_elements(self) -> int:
        return prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, in the order of their bytes.

    Raises: ExportError where the file is cut off or no safetensors file.
    """
    try:
        return _parse_header(path)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"not a whole safetensors file: {error or type(error).__name__}",
            str(path),
            "download or save it again",
        ) from error


def _parse_header(path: Path) -> dict[str, StoredTensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LARGEST_HEADER_BYTES:
            raise ValueError(f"its header would be {length} bytes long")
        header = json.loads(file.read(length))
    size = path.stat().st_size
    begin = 8 + length
    tensors = []
    for name, entry in header.items():
        if name == METADATA:
            continue
        start, stop = entry["data_offsets"]
        if entry["dtype"] not in DTYPE_NAMES:
            raise ValueError(f"the dtype {entry['dtype']} of {name} is not known here")
        if begin + stop > size:
            raise ValueError(f"it ends before {name} does")
        shape = tuple(entry["shape"])
        tensors.append(StoredTensor(name, entry["dtype"], shape, path, begin + start, stop - start))
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda each: each.offset)}


def make_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file of (name, dtype code, shape, bytes) and each tensor's offset.

    Padded with spaces to a multiple of eight bytes, as the library pads it.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    place = 0
    for name, code, shape, num_bytes in tensors:
        stop = place + num_bytes
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [place, stop]}
        place = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    offsets = {
        name: begin + entry["data_offsets"][0] for name, entry in header.items() if name != METADATA
    }
    return struct.pack("<Q", len(text)) + text, offsets
