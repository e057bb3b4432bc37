"""Fixtures that many tests share: a tiny model on disk, rows, a recipe, and the command line."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# Tests use no network. The libraries read these variables at import, so they are set here first.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

# Some tests fork this process. With more threads, the child would wait for threads that it does not
# have. One thread also makes equal runs equal to the last bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and child processes inherit this. Tests that
# send SIGINT would then wait without end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.commands import Outcome, run_command

CITIES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Tokyo", "Quito", "Accra", "Sofia")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests marked `first`, which are the longest, to the front.

    Several workers then end at about the same time.
    """
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def make_rows(count: int) -> list[dict[str, Any]]:
    """Return different conversations of one user message and one answer, in seven lengths."""
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": f"Where is {CITIES[index % 10]}? " + "x " * (index % 7),
                },
                {"role": "assistant", "content": f"{CITIES[index % 10]} is number {index}."},
            ]
        }
        for index in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session", autouse=True)
def temporary_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep prepared data and the key in temporary folders. Child processes use them too."""
    os.environ["LORA_SFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["LORA_SFT_KEY_FILE"] = str(tmp_path_factory.mktemp("key") / "key")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets, tokenizers and a model, outside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LORA_SFT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"REAL DATA IS NOT TESTED: {folder} is missing (set LORA_SFT_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random two-layer Llama with a ChatML tokenizer."""
    from tests.tiny import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Return a function that writes 48 rows and a recipe for the tiny model.

    A keyword argument changes a section of the recipe.
    """

    def write(name: str = "recipe.yaml", **sections: Any) -> Path:
        write_rows(tmp_path / "train.jsonl", make_rows(48))
        recipe: dict[str, Any] = {
            "model": {"model_name_or_path": str(tiny_model), "dtype": "float32"},
            "adapter": {"r": 4, "lora_alpha": 8},
            "data": {
                "datasets": [{"path": "train.jsonl"}],
                "validation": {"fraction": 0.2},
                "max_length": 128,
                "packing": False,
            },
            "train": {
                "learning_rate": 1e-3,
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "global_batch_size": 8,
                "logging_steps": 1,
                "save_steps": 2,
                "gradient_checkpointing": False,
            },
            "evaluate": {"max_new_tokens": 8},
            "output_dir": str(tmp_path / "run"),
        }
        for section, value in sections.items():
            if isinstance(value, dict) and isinstance(recipe.get(section), dict):
                recipe[section] = {**recipe[section], **value}
            else:
                recipe[section] = value
        path = tmp_path / name
        path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
        return path

    return write


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Return a function that starts a web server on this machine and returns its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    servers: list[ThreadingHTTPServer] = []

    def start(handler: Callable[..., BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs `lora-sft` in this process: `command("train", recipe).code`."""
    return lambda *arguments: run_command(capfd, *arguments)
