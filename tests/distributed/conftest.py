"""The cells, shared by all tests of this folder and all workers that run them."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.cells import Cell, make_cell_maker
from tests.tiny import make_tiny_llama


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that is the same in every worker of this test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "distributed"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared_model(shared_folder: Path) -> Path:
    """The tiny model, in one place: its path is part of a run's identity."""
    folder = shared_folder / "model"
    with (shared_folder / "model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer.json").exists():
            make_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def cell(shared_folder: Path, shared_model: Path) -> Callable[[str, str], Cell]:
    """Train a cell, or find it trained: `cell("lora", "zero3")`."""
    return make_cell_maker(shared_folder, shared_model)


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """xdist's name for this worker; `master` where the tests run in one process."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")
