"""Read the bytes of stored tensors with `pread`, from files that stay open."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from lora_sft.errors import ExportError
from lora_sft.model_files.stored_tensors import StoredTensor


class ByteReader:
    """Open files by path, each opened once. Safe to share between threads.

    Use it as a context manager: the files are closed at its end.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def __enter__(self) -> Self:
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

    def open(self, path: Path) -> int:
        """Return a file descriptor for `path`."""
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def read_bytes(self, tensor: StoredTensor, start: int, size: int) -> bytes:
        """Return `size` bytes of the tensor, from its byte `start` on.

        Raises: ExportError if the file ends early.
        """
        result = bytearray(size)
        self.read_into(memoryview(result), tensor, start)
        return bytes(result)

    def read_into(self, view: memoryview, tensor: StoredTensor, start: int) -> None:
        """Fill `view` with bytes of the tensor. The first one is the tensor's byte `start`.

        Raises: ExportError if the file ends early, because another program changed it.
        """
        descriptor, offset = self.open(tensor.file), tensor.offset + start
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise ExportError(
                    "the file ended early: another program changed it",
                    str(tensor.file),
                    "run the command again",
                )
            done += count
