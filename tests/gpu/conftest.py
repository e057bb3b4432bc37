"""Where the GPU tests run: on CUDA, or on the CPU where someone asks for it.

A GPU is lent for minutes, so a mistake in a test must be found without one:
`LORA_SFT_GPU_TESTS_ON=cpu pytest -m gpu tests/gpu` runs all that can be run.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.commands import Outcome, read_metrics

NEEDS_CUDA = "needs CUDA"


@pytest.fixture(autouse=True)
def device() -> Iterator[str]:
    """`cuda` or `cpu`; what a test left on the GPU is given back after it."""
    if torch.cuda.is_available():
        yield "cuda"
        gc.collect()
        torch.cuda.empty_cache()
    elif os.environ.get("LORA_SFT_GPU_TESTS_ON") == "cpu":
        yield "cpu"
    else:
        pytest.skip(NEEDS_CUDA)


@pytest.fixture
def cuda(device: str) -> None:
    """For tests of what only CUDA has."""
    if device != "cuda":
        pytest.skip(NEEDS_CUDA)


@pytest.fixture
def repeats_to(device: str) -> float:
    """How closely (relative) a repeated run gives the same losses: CUDA kernels may add up in
    another order each time, CPU kernels on one thread do not."""
    return 1e-4 if device == "cuda" else 0.0


@pytest.fixture
def train(command: Callable[..., Outcome]) -> Callable[..., dict[int, float]]:
    """Train a recipe to its end: step -> loss."""

    def run(recipe: Path, run_folder: Path, *arguments: object) -> dict[int, float]:
        outcome = command("train", recipe, *arguments)
        assert outcome.code == 0, outcome.stderr
        return read_metrics(run_folder, "loss")

    return run
