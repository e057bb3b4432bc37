"""Write the safetensors files of the output: copy unchanged tensors, compute the others in blocks.

The output has the same files as the base model. A file gets its final name when it is complete and
on disk. Memory holds only a few blocks, for a model and a tensor of any size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lora_sft.export.weights.base_form import BaseForm
from lora_sft.export.weights.tensor_reading import (
    TensorReader,
    copy_bytes,
    find_dtype,
    name_dtype,
    view_bytes,
    write_from,
)
from lora_sft.export.weights.weight_changes import BlockBuffers, ComputedWeight, Panel, Weight
from lora_sft.export.weights.weight_plan import WeightPlan
from lora_sft.file_names import MODEL_WEIGHTS_FILE, MODEL_WEIGHTS_INDEX_FILE
from lora_sft.model_files.stored_tensors import DTYPE_CODES, StoredTensor, make_header
from lora_sft.processes.held_signals import signals_held
from lora_sft.run_directory import write_json

UNFINISHED_SUFFIX = ".unfinished"  # at the end of a file's name until the file is complete
COPY_BYTES = 64 << 20  # per copy: small enough to show progress and to react to Ctrl-C
MOST_WORKERS = 8  # more workers need more memory and are not faster: the disk is the limit


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of an output file.

    Attributes:
        is_copied: Whether its bytes are copied from its source.
    """

    name: str
    dtype: torch.dtype
    weight: Weight
    is_copied: bool

    @property
    def dtype_code(self) -> str:
        return DTYPE_CODES[name_dtype(self.dtype)]

    @property
    def num_bytes(self) -> int:
        return self.weight.source.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class OutputFile:
    """A safetensors file to write. Its tensors are in the order of their bytes."""

    name: str
    tensors: tuple[OutputTensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)


def lay_out_files(plan: WeightPlan, form: BaseForm, dtype: torch.dtype) -> tuple[OutputFile, ...]:
    """Return the files of the output: the base model's own, with new tensors in the first one.

    Tensors in the base model's main dtype get `dtype`. A tensor in another dtype keeps it, for
    example a router's bias in float32.
    """
    base = form.base
    by_file: dict[Path, list[OutputTensor]] = {file: [] for file in base.files}
    for name, weight in plan.weights.items():
        stored = base.tensors.get(name)
        keeps_its_own = stored is not None and stored.dtype_name != base.main_dtype_name
        chosen = find_dtype(stored) if stored is not None and keeps_its_own else dtype
        as_stored = form.is_as_stored(weight.source) and find_dtype(weight.source) == chosen
        file = stored.file if stored is not None else base.files[0]
        is_copied = as_stored and not weight.is_changed
        by_file[file].append(OutputTensor(name, chosen, weight, is_copied))
    if len(by_file) == 1:
        return tuple(OutputFile(MODEL_WEIGHTS_FILE, tuple(each)) for each in by_file.values())
    return tuple(OutputFile(file.name, tuple(each)) for file, each in by_file.items() if each)


class ShardWriter:
    """Writes output files to a folder. Calls `advance` with the bytes of every written part."""

    def __init__(self, folder: Path, form: BaseForm, advance: Callable[[int], object]) -> None:
        self._folder = folder
        self._form = form
        self._advance = advance
        self._buffers = BlockBuffers()
        self._num_workers = min(torch.get_num_threads(), MOST_WORKERS)

    def write(self, files: Sequence[OutputFile]) -> None:
        """Write all files, and an index if there are several."""
        threads = torch.get_num_threads()
        # Blocks are computed in parallel: with more than one thread per block, threads would
        # compete for the cores.
        start = partial(torch.set_num_threads, 1)
        with TensorReader() as reader:
            if self._num_workers == 1:
                for file in files:
                    self._write_file(file, reader, None)
            else:
                with ThreadPoolExecutor(self._num_workers, initializer=start) as pool:
                    for file in files:
                        self._write_file(file, reader, pool)
                torch.set_num_threads(threads)
        if len(files) > 1:
            self._write_index(files)

    def _write_file(
        self, file: OutputFile, reader: TensorReader, pool: ThreadPoolExecutor | None
    ) -> None:
        sizes = ((t.name, t.dtype_code, t.weight.source.shape, t.num_bytes) for t in file.tensors)
        header, offsets = make_header(sizes, {"format": "pt"})
        path = self._folder / f"{file.name}{UNFINISHED_SUFFIX}"
        target = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
        try:
            _reserve_disk(target, len(header) + file.num_bytes)
            write_from(target, memoryview(header), 0)
            self._run(self._list_jobs(file, reader, target, offsets), pool)
            os.fsync(target)
        finally:
            os.close(target)
        path.rename(self._folder / file.name)

    def _run(self, jobs: Iterator[Callable[[], object]], pool: ThreadPoolExecutor | None) -> None:
        """Run all jobs. Only a few wait at a time, because a waiting job holds memory."""
        if pool is None:
            for job in jobs:
                job()
            return
        waiting: list[Future[object]] = []
        try:
            for job in jobs:
                with signals_held():
                    waiting.append(pool.submit(job))
                    if len(waiting) > self._num_workers:
                        waiting.pop(0).result()
            with signals_held():
                for future in waiting:
                    future.result()
        finally:  # the caller closes the file, and no job may write after that
            with signals_held():
                wait(waiting)

    def _list_jobs(
        self, file: OutputFile, reader: TensorReader, target: int, offsets: Mapping[str, int]
    ) -> Iterator[Callable[[], object]]:
        for source, offset, place, size in join_adjacent_copies(file, offsets):
            opened = reader.open(source)
            for start in range(0, size, COPY_BYTES):
                count = min(COPY_BYTES, size - start)
                yield partial(self._copy, opened, offset + start, target, place + start, count)
        for tensor in file.tensors:
            if not tensor.is_copied:
                yield from self._list_blocks(tensor, reader, target, offsets[tensor.name])

    def _list_blocks(
        self, tensor: OutputTensor, reader: TensorReader, target: int, place: int
    ) -> Iterator[Callable[[], object]]:
        values = self._form.read_values(tensor.weight.source, reader)
        computed = ComputedWeight(tensor.weight, reader, self._buffers, values)
        for panel in computed.panels:
            for start, stop in computed.iterate_rows(panel):
                first = panel.first_element + start * panel.num_columns
                at = place + first * tensor.dtype.itemsize
                yield partial(self._compute, computed, panel, (start, stop), tensor, target, at)

    def _copy(self, source: int, offset: int, target: int, place: int, size: int) -> None:
        copy_bytes(source, offset, target, place, size)
        self._advance(size)

    def _compute(
        self,
        computed: ComputedWeight,
        panel: Panel,
        rows: tuple[int, int],
        tensor: OutputTensor,
        target: int,
        place: int,
    ) -> None:
        block = computed.compute_block(panel, *rows, tensor.dtype)
        view = view_bytes(block)
        write_from(target, view, place)
        self._advance(len(view))

    def _write_index(self, files: Sequence[OutputFile]) -> None:
        tensors = [(file.name, tensor) for file in files for tensor in file.tensors]
        total = sum(tensor.num_bytes for _, tensor in tensors)
        parameters = sum(tensor.weight.source.num_elements for _, tensor in tensors)
        write_json(
            self._folder / MODEL_WEIGHTS_INDEX_FILE,
            {
                "metadata": {"total_parameters": parameters, "total_size": total},
                "weight_map": {tensor.name: name for name, tensor in tensors},
            },
        )


def join_adjacent_copies(
    file: OutputFile, offsets: Mapping[str, int]
) -> Iterator[tuple[Path, int, int, int]]:
    """Yield (source file, offset in it, offset in the output, bytes) for every range to copy.

    Tensors that are adjacent in both files are joined to one range.
    """
    joined: list[tuple[Path, int, int, int]] = []
    for tensor in file.tensors:
        if not tensor.is_copied:
            continue
        source: StoredTensor = tensor.weight.source
        place = offsets[tensor.name]
        if joined:
            path, offset, begin, size = joined[-1]
            if (path, offset + size, begin + size) == (source.file, source.offset, place):
                joined[-1] = (path, offset, begin, size + source.num_bytes)
                continue
        joined.append((source.file, source.offset, place, source.num_bytes))
    yield from joined


def _reserve_disk(descriptor: int, num_bytes: int) -> None:
    """Reserve the disk space of a file, so that a full disk is an error before the work."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)
