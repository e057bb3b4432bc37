"""Make recipe sections for tests, with the fields and defaults of the recipe but no checks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def make_dataset(location: Path | str, **fields: Any) -> SimpleNamespace:
    """Return a data set section. Its `path` is the file name, unless a test writes another."""
    defaults = {
        "path": Path(location).name,
        "location": str(location),
        "name": None,
        "split": None,
        "revision": None,
        "data_files": None,
        "format": "auto",
        "rename_columns": {},
        "prompt": None,
        "repeat": 1.0,
    }
    return SimpleNamespace(**(defaults | fields))


def make_data(*datasets: SimpleNamespace, **fields: Any) -> SimpleNamespace:
    """Return the data section."""
    defaults = {
        "datasets": list(datasets),
        "validation": None,
        "test": None,
        "duplicates": "keep",
        "overlap": "error",
        "chat_template": None,
        "chat_template_location": "",
        "chat_template_kwargs": {},
        "template_date": None,
        "loss_on": "auto",
        "rewritten_history": "expand",
        "special_tokens_in_content": "drop",
        "stop_tokens": [],
        "max_length": 512,
        "overlong": "drop",
        "packing": "auto",
    }
    return SimpleNamespace(**(defaults | fields))


def make_split(**fields: Any) -> SimpleNamespace:
    """Return a validation or test section."""
    return SimpleNamespace(**({"fraction": None, "group_by": None, "datasets": None} | fields))


def make_model(location: Path | str, **fields: Any) -> SimpleNamespace:
    """Return the model section."""
    defaults = {"location": str(location), "revision": None, "trust_remote_code": False}
    return SimpleNamespace(**(defaults | fields))


def make_tokenizer_section(**fields: Any) -> SimpleNamespace:
    """Return the tokenizer section."""
    defaults = {
        "path": None,
        "location": "",
        "pad_token": None,
        "eos_token": None,
        "new_tokens": [],
    }
    return SimpleNamespace(**(defaults | fields))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write one row per line, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Return messages that alternate between user and assistant."""
    turns = [
        {"role": "assistant" if index % 2 else "user", "content": content}
        for index, content in enumerate(contents)
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns
