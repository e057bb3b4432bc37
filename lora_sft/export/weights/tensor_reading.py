"""Read and copy tensors in parts, so that a merge needs little memory."""

from __future__ import annotations

import os

import torch

from lora_sft.errors import ExportError
from lora_sft.model_files.byte_reading import ByteReader
from lora_sft.model_files.stored_tensors import StoredTensor

COPY_CHUNK_BYTES = 16 << 20
NUM_RECENT_TENSORS = 4  # kept in memory by `read_cached`


class TensorReader(ByteReader):
    """Reads tensors, or ranges of their elements, from open files. Threads may share it."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: dict[StoredTensor, torch.Tensor] = {}

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """Return the whole tensor in its stored dtype."""
        flat = self.read_elements(tensor, 0, tensor.num_elements)
        return flat.reshape(tensor.shape)

    def read_cached(self, tensor: StoredTensor) -> torch.Tensor:
        """Return the whole tensor in float32. Keep the last few, because experts share factors."""
        if tensor not in self._recent:
            while len(self._recent) >= NUM_RECENT_TENSORS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[tensor] = self.read(tensor).float()
        return self._recent[tensor]

    def read_elements(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Return the elements from `start` up to `stop` of the flattened tensor, as stored.

        Raises: ExportError if the file ends early, because another program changed it.
        """
        result = torch.empty(stop - start, dtype=find_dtype(tensor))
        self.read_elements_into(result, tensor, start)
        return result

    def read_elements_into(self, result: torch.Tensor, tensor: StoredTensor, start: int) -> None:
        """Fill `result`, a flat tensor of the stored dtype, with the elements from `start` on."""
        if result.numel():
            self.read_into(view_bytes(result), tensor, start * result.dtype.itemsize)


def find_dtype(tensor: StoredTensor) -> torch.dtype:
    """Return the torch dtype of a stored tensor."""
    dtype: torch.dtype = getattr(torch, tensor.dtype_name)
    return dtype


def name_dtype(dtype: torch.dtype) -> str:
    """Return torch's name of a dtype without `torch.`, as headers and recipes write it."""
    return str(dtype).removeprefix("torch.")


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor."""
    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]


def write_from(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` to an open file at `offset`."""
    done = 0
    while done < len(view):
        done += os.pwritev(descriptor, [view[done:]], offset + done)


def copy_bytes(source: int, offset: int, target: int, place: int, num_bytes: int) -> None:
    """Copy a range between two open files: inside the kernel if possible, else through a buffer.

    On file systems that share blocks (xfs, btrfs) the kernel does not even copy the bytes.
    """
    done = 0
    while done < num_bytes:
        try:
            count = os.copy_file_range(
                source, target, num_bytes - done, offset + done, place + done
            )
        except (AttributeError, OSError):  # the call does not exist, or not for these two files
            break
        if count == 0:
            break
        done += count
    while done < num_bytes:
        piece = os.pread(source, min(COPY_CHUNK_BYTES, num_bytes - done), offset + done)
        if not piece:
            raise ExportError(
                "a file of the base model ended early: another program changed it",
                "",
                "run the command again",
            )
        write_from(target, memoryview(piece), place + done)
        done += len(piece)
