"""Tensors as they lie in safetensors files: names, shapes, places, and their bytes in pieces.

The header of a safetensors file is eight bytes of length and one JSON document; the tensors follow
it, one after another (https://github.com/huggingface/safetensors, "Format"). It is read here and
not through the library because the library maps whole files into memory, and every page that is
touched counts as this process's; `pread` into a small buffer keeps a merge small for any model.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lora_sft.errors import ExportError

METADATA = "__metadata__"
LARGEST_HEADER_BYTES = 100_000_000  # the library's own bound
COPY_CHUNK_BYTES = 16 << 20
NUM_RECENT_TENSORS = 4
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
# What a merge may round; float8 and integers are codes of a quantisation, or counts.
NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of one file. `offset` counts bytes from the beginning of the file."""

    name: str
    dtype_code: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int

    @cached_property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_code]

    @property
    def is_number(self) -> bool:
        return self.dtype in NUMBERS

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
        if entry["dtype"] not in DTYPES:
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


class TensorReader:
    """Reads tensors, or some of their rows, from open files; safe to share between threads."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._recent: dict[StoredTensor, torch.Tensor] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._recent.clear()

    def open(self, path: Path) -> int:
        """A descriptor for `path`, kept until the reader is closed."""
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """The whole tensor in its own dtype."""
        flat = self.read_elements(tensor, 0, tensor.num_elements)
        return flat.reshape(tensor.shape)

    def read_again(self, tensor: StoredTensor) -> torch.Tensor:
        """The whole tensor in float32, the last few kept: experts share their factors."""
        if tensor not in self._recent:
            while len(self._recent) >= NUM_RECENT_TENSORS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[tensor] = self.read(tensor).float()
        return self._recent[tensor]

    def read_bytes(self, tensor: StoredTensor, start: int, size: int) -> bytes:
        """`size` bytes of the tensor from its byte `start` on."""
        result = bytearray(size)
        read_into(self.open(tensor.file), memoryview(result), tensor.offset + start, tensor.file)
        return bytes(result)

    def read_elements(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of the flattened tensor, in its own dtype.

        Raises: ExportError where the file ends early (it changed while it was read).
        """
        result = torch.empty(stop - start, dtype=tensor.dtype)
        self.read_elements_into(result, tensor, start)
        return result

    def read_elements_into(self, result: torch.Tensor, tensor: StoredTensor, start: int) -> None:
        """Fill a flat tensor of the same dtype from element `start` on."""
        if result.numel():
            offset = tensor.offset + start * tensor.dtype.itemsize
            read_into(self.open(tensor.file), view_bytes(result), offset, tensor.file)


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]


def read_into(descriptor: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill `view` from `offset` on.

    Raises: ExportError where the file ends early.
    """
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ExportError("the file ended early", str(path), "it changed; start again")
        done += count


def write_from(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at `offset`."""
    done = 0
    while done < len(view):
        done += os.pwritev(descriptor, [view[done:]], offset + done)


def copy_bytes(source: int, offset: int, target: int, place: int, num_bytes: int) -> None:
    """Copy a range between two open files: inside the kernel where it can, else through a buffer.

    On file systems that share blocks (xfs, btrfs) nothing is copied at all.
    """
    done = 0
    while done < num_bytes:
        try:
            count = os.copy_file_range(
                source, target, num_bytes - done, offset + done, place + done
            )
        except (AttributeError, OSError):  # no such call here, or not between these two files
            break
        if count == 0:
            break
        done += count
    while done < num_bytes:
        piece = os.pread(source, min(COPY_CHUNK_BYTES, num_bytes - done), offset + done)
        if not piece:
            raise ExportError("a file of the base ended early", "", "it changed; start again")
        write_from(target, memoryview(piece), place + done)
        done += len(piece)
