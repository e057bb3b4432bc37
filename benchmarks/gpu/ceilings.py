"""Measure the limits of the device: the best rates that training could reach.

The limits are the rate of matrix products, the bandwidth of copies, the bandwidth of NF4
dequantisation and the rate of attention over packed documents. The data is random, because zeros
run faster. The sizes use the whole device. Each repetition is timed with device events.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.lane import Place, Scale, Task
from benchmarks.record import Case, Measurement

MEASURE = "ceilings"

WARMUPS = 3
REPETITIONS = 10
HEADS, HEAD_DIM = 32, 128  # as the queries of Llama-3.1-8B; keys and values have as many heads
CAUSAL = (-1, 0)  # attend to all earlier tokens and to no later token


def list_tasks(scale: Scale) -> Iterator[Task]:
    """Yield one task per limit."""
    for subject, measure in CEILINGS.items():
        yield Task(
            subject,
            "this device",
            "limit",
            seconds=90,
            needs_cuda=measure is measure_varlen_attention,
        )


def perform(task: Task, place: Place) -> Case:
    """Measure one limit."""
    name, unit, samples = CEILINGS[task.subject](place.scale.is_toy)
    measured = {name: Measurement(unit, tuple(samples), "higher")}
    return Case(task.subject, task.contestant, "limit", measured)


def time_repeatedly(work: Callable[[], Any], repetitions: int = REPETITIONS) -> list[float]:
    """Return the seconds of each repetition. A few repetitions before them warm up the device."""
    for _ in range(WARMUPS):
        work()
    if not torch.cuda.is_available():
        return [_time_on_cpu(work) for _ in range(repetitions)]
    events: list[tuple[Any, Any]] = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def _time_on_cpu(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _find_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure_matmul_rate(toy: bool) -> float:
    """Return the median rate of a square bfloat16 matrix product, in FLOP/s."""
    return statistics.median(measure_matmul(toy)[2])


def measure_matmul(toy: bool) -> tuple[str, str, list[float]]:
    """Measure a bfloat16 product of two n x n matrices: 2 n^3 operations."""
    n = 128 if toy else 8192
    a, b = (torch.randn(n, n, device=_find_device(), dtype=torch.bfloat16) for _ in range(2))
    return "flops_per_second", "FLOP/s", [2 * n**3 / s for s in time_repeatedly(lambda: a @ b)]


def measure_copy(toy: bool) -> tuple[str, str, list[float]]:
    """Measure a device-to-device copy. Read bytes and written bytes both count."""
    size = 2**20 if toy else 4 * 2**30
    source = torch.randint(0, 255, (size,), device=_find_device(), dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = time_repeatedly(lambda: target.copy_(source))
    return "bytes_per_second", "B/s", [2 * size / s for s in seconds]


def measure_nf4_dequantisation(toy: bool) -> tuple[str, str, list[float]]:
    """Measure the conversion of NF4 codes with double quantisation to bfloat16.

    The traffic is 2.516 bytes per weight. Read are 1/2 byte of code, 1/64 byte of a first-level
    scale and 4/16384 byte of a second-level scale. Written are 2 bytes.
    """
    import bitsandbytes.functional as bnb

    shape = (256, 256) if toy else (14336, 4096)
    weight = torch.randn(shape, device=_find_device(), dtype=torch.bfloat16)
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    traffic = weight.numel() * (0.5 + 1 / 64 + 4 / 16384 + 2)
    seconds = time_repeatedly(lambda: bnb.dequantize_4bit(codes, state))
    return "bytes_per_second", "B/s", [traffic / s for s in seconds]


def measure_varlen_attention(toy: bool) -> tuple[str, str, list[float]]:
    """Measure causal attention, forward and backward, over 16 packed documents of 1,024 tokens.

    As in benchmarks/flops.py it needs 7 S d operations per token: 2 forward and 5 backward.
    """
    from torch.nn.attention.varlen import varlen_attn

    documents, length = 16, 1024
    total, width = documents * length, HEADS * HEAD_DIM
    ends = torch.arange(0, total + 1, length, device="cuda", dtype=torch.int32)
    query, key, value = (
        torch.randn(total, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )

    def work() -> None:
        out: Any = varlen_attn(query, key, value, ends, ends, length, length, window_size=CAUSAL)
        out.backward(out.detach())

    flops = 7 * length * width * total
    return "flops_per_second", "FLOP/s", [flops / s for s in time_repeatedly(work)]


CEILINGS: dict[str, Callable[[bool], tuple[str, str, list[float]]]] = {
    "bfloat16 matrix product": measure_matmul,
    "device-to-device copy": measure_copy,
    "NF4 dequantisation": measure_nf4_dequantisation,
    "attention over packed documents": measure_varlen_attention,
}
