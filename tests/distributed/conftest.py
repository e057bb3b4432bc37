"""Fixtures for cells (see `cells.py`), shared by all tests and workers."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.cells import Cell, make_cell_maker
from tests.tiny import make_tiny_llama


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "distributed"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared_model(shared_folder: Path) -> Path:
    """The tiny model, at one path: the path is part of a run's identity."""
    folder = shared_folder / "model"
    with (shared_folder / "model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer.json").exists():
            make_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def cell(shared_folder: Path, shared_model: Path) -> Callable[[str, str], Cell]:
    """A function that trains a cell, or finds it if it is trained: `cell("lora", "zero3")`."""
    return make_cell_maker(shared_folder, shared_model)


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """The name of this pytest-xdist worker; `master` if the tests run in one process."""
    return getattr(request.config, "workerinput", {}).get("workerid", "master")
