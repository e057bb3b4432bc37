"""Read and make the headers of safetensors files: name, dtype, shape and position of each tensor.

A safetensors file begins with eight bytes that hold the length of the header. The header is one
JSON document, and the tensors follow it (https://github.com/huggingface/safetensors, "Format").

The safetensors library is not used. It maps whole files into memory, and every page that is read
counts as memory of this process. `pread` into a small buffer needs little memory for any model.
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

from lora_sft.errors import ExportError, LoraSftError

METADATA = "__metadata__"
LARGEST_HEADER_BYTES = 100_000_000  # the same limit as in the library
# safetensors' code of a dtype -> torch's name.
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
# What the parts of a damaged header make Python raise.
_HEADER_ERRORS = (
    *(struct.error, ValueError, LookupError),
    *(TypeError, AttributeError, ArithmeticError, RecursionError),
)
# The dtypes that a merge may round. Tensors in float8 or integers are quantisation codes or counts.
PLAIN_FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one safetensors file.

    Attributes:
        offset: Bytes from the beginning of the file to the tensor.
    """

    name: str
    dtype_code: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int

    @property
    def dtype_name(self) -> str:
        """torch's name of the dtype, without the prefix `torch.`."""
        return DTYPE_NAMES[self.dtype_code]

    @property
    def is_plain_float(self) -> bool:
        return self.dtype_name in PLAIN_FLOAT_DTYPES

    @cached_property
    def num_elements(self) -> int:
        return prod(self.shape)


def read_header(
    path: Path, error_class: type[LoraSftError] = ExportError
) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name, in the order of their bytes.

    Raises: `error_class` if the file cannot be read, is incomplete, or is not a safetensors file.
    """
    try:
        return _parse_header(path)
    except OSError as error:
        raise error_class(
            f"the file of weights cannot be read: {error.strerror}",
            str(path),
            "check its permissions, or download or save it again",
        ) from error
    except _HEADER_ERRORS as error:
        raise error_class(
            f"not a complete safetensors file: {error or type(error).__name__}",
            str(path),
            "download or save it again",
        ) from error


def _parse_header(path: Path) -> dict[str, StoredTensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LARGEST_HEADER_BYTES:
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(file.read(length))
    size = path.stat().st_size
    begin = 8 + length
    tensors = []
    for name, entry in header.items():
        if name == METADATA:
            continue
        start, stop = entry["data_offsets"]
        if not 0 <= start <= stop:
            raise ValueError(f"{name} has the data_offsets {start} and {stop}")
        if entry["dtype"] not in DTYPE_NAMES:
            raise ValueError(f"{name} has the unknown dtype {entry['dtype']}")
        if begin + stop > size:
            raise ValueError(f"it ends before the end of {name}")
        shape = tuple(entry["shape"])
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"{name} has the shape {list(shape)}")
        tensors.append(StoredTensor(name, entry["dtype"], shape, path, begin + start, stop - start))
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda each: each.offset)}


def make_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the header of a file, and each tensor's offset in the file.

    The header is padded with spaces to a multiple of eight bytes, as in the library.

    Args:
        tensors: (name, dtype code, shape, number of bytes) of each tensor.
        metadata: The texts for the header's `__metadata__`.
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
