"""Choose the device of the GPU tests: CUDA, or the CPU if `LORA_SFT_GPU_TESTS_ON` is "cpu".

Time on a GPU is rare, so faults in these tests should be found without a GPU:
`LORA_SFT_GPU_TESTS_ON=cpu pytest -m gpu tests/gpu` runs all tests that can run on a CPU.
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
    """The device of a test: "cuda" or "cpu". After the test its GPU memory is freed."""
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
    """Skip the test if there is no CUDA device."""
    if device != "cuda":
        pytest.skip(NEEDS_CUDA)


@pytest.fixture
def repeats_to(device: str) -> float:
    """The largest relative difference between the losses of a run and its repetition.

    CUDA kernels may add numbers in a different order each time. CPU kernels on one thread do not.
    """
    return 1e-4 if device == "cuda" else 0.0


@pytest.fixture
def train(command: Callable[..., Outcome]) -> Callable[..., dict[int, float]]:
    """A function that trains a recipe to its end and returns the loss of each step."""

    def run(recipe: Path, run_folder: Path, *arguments: object) -> dict[int, float]:
        outcome = command("train", recipe, *arguments)
        assert outcome.code == 0, outcome.stderr
        return read_metrics(run_folder, "loss")

    return run
