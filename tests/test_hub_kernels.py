"""No command and no Python function fetches code of the hub that nobody asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

import pytest

from lora_sft.hub_kernels import ASKING_LOGGER, without_hub_kernels
from tests.commands import run_lora_sft

FAKE_PACKAGE = """
__version__ = "0.20.0"
def get_kernel(*arguments, **options):
    print("FETCHED", arguments)
    raise RuntimeError("there is no network")
def __getattr__(name):
    return get_kernel
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Return a folder with a package `kernels` that prints what is fetched."""
    folder = tmp_path / "packages"
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text(FAKE_PACKAGE)
    (folder / "kernels-0.20.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: kernels\nVersion: 0.20.0\n"
    (folder / "kernels-0.20.0.dist-info" / "METADATA").write_text(metadata)
    return folder


def test_a_run_fetches_no_kernel_and_does_not_speak_of_one(write_recipe, packages):
    """transformers 5.23 fetches one instead of a missing `flash_attn`.

    bitsandbytes 0.50 fetches another, on CPUs with AVX512-BF16.
    """
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash_attn is installed here")
    recipe = write_recipe(model={"attn_implementation": "flash_attention_2"})
    paths = os.pathsep.join([str(packages), *filter(None, sys.path)])
    outcome = run_lora_sft("train", recipe, PYTHONPATH=paths)
    assert outcome.code == 5, outcome.stderr
    assert "FETCHED" not in outcome.stdout + outcome.stderr
    assert "kernels" not in outcome.stderr


def test_a_program_has_its_own_kernels_again_after_the_function(packages, monkeypatch):
    monkeypatch.syspath_prepend(packages)
    import kernels  # type: ignore[import-not-found]

    with without_hub_kernels():
        with without_hub_kernels():
            assert importlib.util.find_spec("kernels") is None
        with pytest.raises(ImportError):
            import kernels
    assert sys.modules["kernels"] is kernels
    monkeypatch.delitem(sys.modules, "kernels")
    with without_hub_kernels():
        pass
    assert "kernels" not in sys.modules


def test_other_warnings_of_bitsandbytes_are_shown(caplog):
    logger = logging.getLogger(ASKING_LOGGER)
    with without_hub_kernels():
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "none")
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
