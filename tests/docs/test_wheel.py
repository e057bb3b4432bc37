"""Check that the built wheel has every file that a run needs, and works without the repository.

An editable install finds `recipes/` in the repository. Only a wheel shows that a file is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lora_sft.recipe.catalogue import list_recipes

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_SECONDS = 180
NEEDED = (
    "lora_sft/py.typed",
    "lora_sft/data/templates/plain.jinja",
    "lora_sft/recipe/library_fields.json",
    "lora_sft/quickstart/base/chat_template.jinja",
    "lora_sft/quickstart/base/config.json",
    "lora_sft/quickstart/base/model.safetensors",
    "lora_sft/quickstart/base/tokenizer.json",
    "lora_sft/quickstart/data/test.jsonl",
    "lora_sft/quickstart/data/train.jsonl",
    "lora_sft/quickstart/data/validation.jsonl",
    "lora_sft/_shipped/recipes/quickstart.yaml",
    *(
        f"lora_sft/_shipped/ds_configs/zero{stage}.json"
        for stage in ("0", "1", "2", "2_offload", "3", "3_offload")
    ),
)


def run_python(*arguments: object, folder: Path, **environment: str) -> str:
    """Run Python in a new process and return its stdout. Fail if its exit code is not 0."""
    finished = subprocess.run(
        [sys.executable, *(str(argument) for argument in arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with this environment's hatchling, so that no network is needed."""
    pytest.importorskip("hatchling", reason="pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    run_python(
        "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY, folder=folder
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Install the wheel into a folder, which the tests put on `PYTHONPATH`."""
    site = wheel.parent / "site"
    run_python(
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", "--target", site, wheel),
        folder=wheel.parent,
    )
    return site


def test_the_wheel_has_every_file_that_a_run_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not set(NEEDED) - names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "recipes/"))]


def test_the_wheel_has_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "lora_sft"
    files = [
        path.relative_to(REPOSITORY).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    ]
    assert not set(files) - names
    assert len(files) >= 50


def test_the_installed_package_lists_the_shipped_recipes(installed, tmp_path):
    listed = json.loads(run_lora_sft(installed, tmp_path, "recipes", "--json"))
    assert [recipe["name"] for recipe in listed] == [recipe.name for recipe in list_recipes()]
    assert all(Path(recipe["path"]).is_relative_to(installed) for recipe in listed)


def test_the_installed_package_reads_its_quickstart_recipe(installed, tmp_path):
    listed = json.loads(run_lora_sft(installed, tmp_path, "recipes", "--json"))
    (path,) = [recipe["path"] for recipe in listed if recipe["name"] == "quickstart"]
    shown = json.loads(run_lora_sft(installed, tmp_path, "show", path, "--json"))
    assert shown["recipe"]["model"]["model_name_or_path"] == "lora_sft://quickstart/base"
    assert shown["origins"]["model.model_name_or_path"].startswith(path)


def test_the_installed_package_finds_its_deepspeed_files(installed, tmp_path):
    recipe = {
        "model": "some/model",
        "data": {"datasets": [{"path": "some/data"}], "max_length": 64},
        "train": {"deepspeed": "zero3"},
    }
    (tmp_path / "my.yaml").write_text(json.dumps(recipe))
    shown = json.loads(run_lora_sft(installed, tmp_path, "show", "my.yaml", "--json"))
    assert shown["recipe"]["train"]["deepspeed"] == "zero3"


def run_lora_sft(installed: Path, folder: Path, *arguments: str) -> str:
    return run_python("-m", "lora_sft", *arguments, folder=folder, PYTHONPATH=str(installed))
