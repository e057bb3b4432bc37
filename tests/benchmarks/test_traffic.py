from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.flops import count_flops_per_token
from benchmarks.shapes import SHAPES
from benchmarks.traffic import CountedStep, StepTraffic


def test_element_wise_bytes_are_the_bytes_read_and_written() -> None:
    x = torch.ones(1000)
    with StepTraffic() as traffic:
        y = x * 2.0  # reads 4,000 bytes and writes 4,000
        y.add_(x)  # reads 8,000 bytes and writes 4,000
    assert traffic.launches == 2
    assert traffic.element_wise_bytes == 8000 + 12000


def test_views_and_allocations_are_not_counted_as_launches() -> None:
    x = torch.ones(10, 20)
    with StepTraffic() as traffic:
        x.view(200).reshape(20, 10).transpose(0, 1)[2:]
        torch.empty(10)
        x.detach()
    assert traffic.launches == 0
    assert traffic.element_wise_bytes == 0


def test_a_matrix_product_is_a_launch_without_element_wise_bytes() -> None:
    with StepTraffic() as traffic:
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert traffic.operators["mm"] == 1
    assert traffic.element_wise_bytes == 2 * 8 * 8 * 4  # from the two calls of torch.ones


def test_reading_a_number_back_is_counted_as_a_synchronisation() -> None:
    with StepTraffic() as traffic:
        torch.ones(1).item()
    assert traffic.synchronisations == 1


def test_recomputation_reduces_the_bytes_kept_for_the_backward_pass() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 16))
    x = torch.randn(8, 16, requires_grad=True)
    kept = {}
    for name in ("kept", "recomputed"):
        counted = CountedStep(1, layer)
        counted.start_step(1)
        y = layer(x) if name == "kept" else checkpoint(layer, x, use_reentrant=False)
        y.sum().backward()
        counted.end_step(1)
        kept[name] = counted.saved_bytes
    row = 8 * 4
    assert kept["kept"] == row * (16 + 64 + 64)  # the inputs of the three layers
    assert kept["recomputed"] <= row * 16


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Llama-3.2-1B", 1.236e9), ("Llama-3.1-8B", 8.030e9), ("Qwen2.5-7B", 7.616e9)],
)
def test_the_shapes_have_the_published_sizes(name: str, parameters: float) -> None:
    shape = SHAPES[name]
    heads = 1 if shape.tied else 2
    assert shape.linear_weights + heads * shape.head_weights == pytest.approx(parameters, rel=1e-3)


def test_the_needed_operations_of_an_8b_model_match_the_known_number() -> None:
    shape = SHAPES["Llama-3.1-8B"]
    assert shape.count_adapter_weights(16) == 41_943_040
    assert count_flops_per_token(shape, 2048, 16) == pytest.approx(32.1e9, rel=0.01)
