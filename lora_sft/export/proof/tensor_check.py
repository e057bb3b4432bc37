"""Read every tensor of the output from disk and compare it with its reference.

A comparison of logits can miss a single lost module, because rounding may change the logits more
than the module does. This comparison finds it. Each merged tensor is compared number by number with
W + s B A. The reference is computed again in float32 from the files of base model and adapter. Each
other tensor is compared byte by byte with its source.

The reference is the plain formula over whole rows. It uses the plan of the merge, but none of its
arithmetic. Tensors are read in parts, so that the memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_sft.export.weights.base_form import BaseForm
from lora_sft.export.weights.shard_writing import OutputFile, OutputTensor
from lora_sft.export.weights.tensor_reading import COPY_CHUNK_BYTES, TensorReader, find_dtype
from lora_sft.export.weights.weight_changes import LowRank
from lora_sft.model_files.stored_tensors import StoredTensor, read_header

COMPARED_ELEMENTS = 1 << 18
MOST_ULPS = 1
# If W and s B A nearly cancel, the order of float32 additions changes more than the last bit. A
# difference up to this share of the largest number in the block counts as float32 noise.
NOISE_SHARE = 4e-6
INTEGER_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class TensorDifference:
    """The result of comparing all tensors.

    Attributes:
        compared: The number of tensors.
        merged: The number of tensors that the adapters change.
        differing: The number of tensors that exceed the tolerance.
        largest_ulps: The largest distance in units in the last place.
        max_abs_difference: The largest absolute difference.
        first_differing: The name of the first tensor that exceeds the tolerance.
    """

    compared: int
    merged: int
    differing: int
    largest_ulps: int
    max_abs_difference: float
    first_differing: str | None

    @property
    def passed(self) -> bool:
        return self.differing == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the section `tensors` of the report."""
        return {
            "compared": self.compared,
            "merged": self.merged,
            "differing": self.differing,
            "first_differing": self.first_differing,
            "max_abs_weight_difference": self.max_abs_difference,
            "largest_ulps": self.largest_ulps,
            "tolerance_ulps": MOST_ULPS,
        }


def compare_tensors(
    files: Sequence[OutputFile], folder: Path, form: BaseForm, advance: Callable[[int], object]
) -> TensorDifference:
    """Compare every tensor of the written files with its reference, and return the result."""
    merged = differing = compared = 0
    largest_ulps, largest, first = 0, 0.0, None
    with TensorReader() as reader:
        for file in files:
            written = read_header(folder / file.name)
            for tensor in file.tensors:
                compared += 1
                merged += tensor.weight.is_changed
                found = written.get(tensor.name)
                ulps, difference, agrees = (
                    _compare_tensor(tensor, found, form, reader) if found else (0, 0.0, False)
                )
                largest_ulps, largest = max(largest_ulps, ulps), max(largest, difference)
                if not agrees:
                    differing += 1
                    first = first or tensor.name
                advance(tensor.num_bytes)
    return TensorDifference(compared, merged, differing, largest_ulps, largest, first)


def _compare_tensor(
    tensor: OutputTensor, written: StoredTensor, form: BaseForm, reader: TensorReader
) -> tuple[int, float, bool]:
    """Compare one tensor with its reference.

    Returns: The largest distance in units in the last place, the largest absolute difference, and
    whether both are within the tolerance.
    """
    source = tensor.weight.source
    if (find_dtype(written), written.shape) != (tensor.dtype, source.shape):
        return 0, 0.0, False
    if tensor.is_copied:
        return 0, 0.0, _are_same_bytes(source, written, reader)
    ulps, largest, agrees = 0, 0.0, True
    for first, expected in _iterate_reference(tensor, form, reader):
        found = reader.read_elements(written, first, first + expected.numel())
        rounded = expected.flatten().to(tensor.dtype)
        if torch.equal(found, rounded):
            continue
        difference = (found.float() - rounded.float()).abs()
        noise = difference <= NOISE_SHARE * expected.abs().max()
        distance = torch.where(noise, 0, _count_ulps(found, rounded))
        ulps = max(ulps, int(distance.max()))
        largest = max(largest, float(difference.max()))
        agrees &= bool(torch.isfinite(difference).all()) and int(distance.max()) <= MOST_ULPS
    return ulps, largest, agrees


def _are_same_bytes(left: StoredTensor, right: StoredTensor, reader: TensorReader) -> bool:
    step = COPY_CHUNK_BYTES
    for start in range(0, left.num_bytes, step):
        size = min(step, left.num_bytes - start)
        if reader.read_bytes(left, start, size) != reader.read_bytes(right, start, size):
            return False
    return True


def _count_ulps(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the distance of each pair of floats, counted in floats of their dtype (ulps).

    The bits of positive floats are in the same order as the floats if they are read as integers.
    Negative floats are in reverse order, so their bits are mirrored.
    """
    kind = INTEGER_DTYPES[left.dtype.itemsize]
    places = []
    for values in (left, right):
        bits = values.contiguous().view(kind).to(torch.int64)
        lowest = torch.iinfo(kind).min
        places.append(torch.where(bits < 0, lowest - bits, bits))
    return (places[0] - places[1]).abs()


def _iterate_reference(
    tensor: OutputTensor, form: BaseForm, reader: TensorReader
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (index of the first element, rows in float32) for the expected values of a tensor."""
    weight, source = tensor.weight, tensor.weight.source
    values = form.read_values(source, reader)
    experts = source.shape[0] if len(source.shape) == 3 else 1
    rows, columns = (1, 1, *source.shape)[-2:]
    for expert in range(experts):
        begin = expert * rows * columns
        part = expert if experts > 1 else None

        def read(
            start: int, stop: int, begin: int = begin, part: int | None = part
        ) -> torch.Tensor:
            first, last = begin + start * columns, begin + stop * columns
            if values is None:
                flat = reader.read_elements(source, first, last)
            else:
                flat = values.reshape(-1)[first:last].clone()
            block = flat.float().reshape(stop - start, columns)
            for edit in weight.rows:
                chosen = torch.tensor(edit.indices)
                inside = (chosen >= start) & (chosen < stop)
                block[chosen[inside] - start] = reader.read(edit.rows).float()[inside]
            for term in weight.terms:
                block = block + _compute_delta(term, part, start, stop, reader)
            for bias in weight.biases:
                block = block + bias.scale * reader.read(bias.bias).float()
            return block

        step = max(1, COMPARED_ELEMENTS // columns)
        ranges = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        scale_rows, scale_columns = _find_dora_scales(weight.terms, read, ranges, reader)
        for start, stop in ranges:
            block = read(start, stop)
            if scale_columns is not None:
                block = block * scale_columns
            if scale_rows is not None:
                block = block * scale_rows[start:stop, None]
            yield begin + start * columns, block


def _compute_delta(
    term: LowRank, expert: int | None, start: int, stop: int, reader: TensorReader
) -> torch.Tensor:
    """Return the rows from `start` up to `stop` of s B A, or of its transpose."""
    a, b = reader.read_cached(term.a), reader.read_cached(term.b)
    which = term.expert if term.expert is not None else expert
    if term.num_experts > 1:
        assert which is not None
        rank = a.shape[0] // term.num_experts
        a = a[which * rank : (which + 1) * rank]
        b = b[:, which :: term.num_experts]
    start, stop = start + term.first_row, stop + term.first_row
    if term.transposed:
        return (b @ a[:, start:stop]).T * term.scale
    return (b[start:stop] @ a) * term.scale


def _find_dora_scales(
    terms: Sequence[LowRank],
    read: Callable[[int, int], torch.Tensor],
    ranges: Sequence[tuple[int, int]],
    reader: TensorReader,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return DoRA's m / |W + s B A| per row and per column. At most one of them is not None."""
    learned = next((term for term in terms if term.magnitude is not None), None)
    if learned is None or learned.magnitude is None:
        return None, None
    magnitude = reader.read(learned.magnitude).float().flatten()
    if learned.transposed:
        squares = sum(read(*each).double().square().sum(0) for each in ranges)
        return None, (magnitude / torch.as_tensor(squares).sqrt()).float()
    lengths = torch.cat([torch.linalg.norm(read(*each), dim=1) for each in ranges])
    return magnitude / lengths, None
