"""A project with every file that a command reads, and the ways in which such a file may be damaged.

`tests/invariants/test_damaged_files.py` runs every command with each damage of each of its files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import make_rows, write_rows
from tests.tiny import CHATML, make_tiny_llama

RECIPE = {
    "model": {"model_name_or_path": "base", "dtype": "float32"},
    "adapter": {"r": 4, "lora_alpha": 8},
    "data": {
        "datasets": [{"path": "rows.jsonl"}],
        "validation": {"datasets": [{"path": "held_out.jsonl"}]},
        "chat_template": "template.jinja",
        "max_length": 128,
        "packing": False,
    },
    "train": {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "global_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "activation_checkpointing": False,
    },
    "evaluate": {"max_new_tokens": 2},
    "output_dir": "run",
}
DEEPSPEED = {"zero_optimization": {"stage": 2}, "train_batch_size": "auto", "steps_per_print": 10}
TABLE = {"prompt": ["Where is Rome?", "Where is Oslo?"], "completion": ["In Italy.", "In Norway."]}

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WEIGHTS = ("model.safetensors.index.json", "model-00001-of-00002.safetensors")
CONFIGS = ("config.json", "generation_config.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "lora_sft.json")
STATE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "manifest.json")
CORPUS = ("corpus.json", "checksums.json", "train-00001.arrow", "validation-00002.arrow")


def within(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


BASE = within(
    "base",
    *CONFIGS,
    *TOKENIZER,
    *WEIGHTS,
    "README.md",
)
DATA = ("recipe.yaml", "rows.jsonl", "held_out.jsonl", "template.jinja")
SAVED = within("run/adapter", *ADAPTER, *TOKENIZER, "generation_config.json")
CHECKPOINT = within("unfinished/checkpoints/checkpoint-1", *ADAPTER, *STATE)


@dataclass(frozen=True)
class Case:
    """A command line, and the files that the command reads."""

    arguments: tuple[str, ...]
    files: tuple[str, ...]


ANSWER = ("--message", "hi", "--max-new-tokens", "1")
CASES = {
    "show": Case(("show", "recipe.yaml"), DATA[:1]),
    "show, DeepSpeed": Case(
        ("show", "recipe.yaml", "train.deepspeed=deepspeed.json"), ("deepspeed.json",)
    ),
    "launch": Case(("launch", "recipe.yaml", "--gpus", "2", "--write", "out"), DATA[:1]),
    "prepare": Case(("prepare", "recipe.yaml"), (*DATA, *BASE, *within("cache", *CORPUS))),
    "prepare, csv": Case(
        ("prepare", "recipe.yaml", "data.datasets.0.path=rows.csv"), ("rows.csv",)
    ),
    "prepare, parquet": Case(
        ("prepare", "recipe.yaml", "data.datasets.0.path=rows.parquet"), ("rows.parquet",)
    ),
    "preview": Case(("preview", "recipe.yaml", "--rows", "1"), (*DATA, *BASE)),
    "train": Case(("train", "recipe.yaml", "output_dir=out"), (*DATA, *BASE)),
    "train from an adapter": Case(
        ("train", "recipe.yaml", "output_dir=out", "adapter={init_from: run/adapter}"), SAVED
    ),
    "train on": Case(
        ("train", "recipe.yaml", "output_dir=unfinished"),
        (*within("unfinished", "recipe.yaml", "manifest.json", "metrics.jsonl"), *CHECKPOINT),
    ),
    "train a finished run": Case(
        ("train", "recipe.yaml"), within("run", "recipe.yaml", "manifest.json", "status.json")
    ),
    "evaluate": Case(
        ("evaluate", "run", "--rows", "1"),
        (*within("run", "recipe.yaml", "manifest.json"), *DATA[1:], *BASE, *SAVED),
    ),
    "evaluate a merged model": Case(
        ("evaluate", "merged", "--recipe", "recipe.yaml", "--rows", "1"),
        within("merged", *CONFIGS, *WEIGHTS, *TOKENIZER),
    ),
    "merge": Case(
        ("merge", "run", "out"),
        (*within("run", "recipe.yaml", "validation_sample.json"), *BASE, *SAVED),
    ),
    "merge, the plan": Case(("merge", "run", "out", "--dry-run"), (*BASE, *SAVED)),
    "chat": Case(("chat", "run", *ANSWER), (*BASE, *SAVED)),
    "chat with a merged model": Case(
        ("chat", "merged", *ANSWER), within("merged", *CONFIGS, *WEIGHTS, *TOKENIZER)
    ),
    "serve, the plan": Case(("serve", "run", "--dry-run"), SAVED),
    "serve": Case(("serve", "run", "--backend", "transformers", "--port", "0"), (*BASE, *SAVED)),
}


def make_project(folder: Path) -> Path:
    """Make a base in two files, rows, a finished run, an unfinished run and a merged model."""
    import pyarrow as pa
    import pyarrow.parquet
    from transformers import AutoModelForCausalLM

    from lora_sft.cli.app import run

    make_tiny_llama(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    (folder / "base" / "model.safetensors").unlink()
    model.save_pretrained(folder / "base", max_shard_size="300KB")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    write_rows(folder / "rows.jsonl", make_rows(8))
    write_rows(folder / "held_out.jsonl", make_rows(10)[8:])
    (folder / "rows.csv").write_text("prompt,completion\nWhere is Rome?,In Italy.\n")
    pa.parquet.write_table(pa.table(TABLE), folder / "rows.parquet")
    (folder / "template.jinja").write_text(CHATML)
    (folder / "deepspeed.json").write_text(json.dumps(DEEPSPEED))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE, indent=2))
    with contextlib.chdir(folder):
        assert run(["train", "recipe.yaml"]) == 0
        assert run(["merge", "run", "merged", "--verify", "none"]) == 0
        shutil.copytree("run", "unfinished")
        (entry,) = (Path(os.environ["LORA_SFT_CACHE"]) / "corpus").iterdir()
        Path("cache").symlink_to(entry)
    for leftover in ("status.json", "adapter", "checkpoints/checkpoint-2"):
        path = folder / "unfinished" / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


Damage = Callable[[Path], None]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_foreign_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\xfa" + path.read_bytes())


def write_other_type(path: Path) -> None:
    path.write_text("- 1\n" if path.suffix == ".yaml" else "[1]\n")


def make_unreadable(path: Path) -> None:
    """Put a folder in the file's place. Root may read every file, whatever its permissions are."""
    path.unlink()
    path.mkdir()


def forbid_reading(path: Path) -> None:
    path.chmod(0)


WHOLE_FILE_DAMAGES: dict[str, Damage] = {
    "empty": empty,
    "truncated": truncate,
    "not UTF-8": add_foreign_bytes,
    "wrong type": write_other_type,
    "a folder": make_unreadable,
    "missing": Path.unlink,
}
if os.geteuid() != 0:
    WHOLE_FILE_DAMAGES["no permission"] = forbid_reading
OTHER_VALUES = ("text", 3, -1, 10**12, 0.5, True, [1], {"a": 1}, None)


def list_field_damages(path: Path) -> dict[str, Damage]:
    """Return the damages of each field of a JSON object: it is lost, or has another value."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    return {label: make_writer(changed) for label, changed in list_changes(document)}


def list_changes(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in document.items():
        yield f"without {name}", {key: each for key, each in document.items() if key != name}
        for other in OTHER_VALUES:
            if other != value or type(other) is not type(value):
                yield f"{name}: {json.dumps(other)}", {**document, name: other}


def make_writer(document: dict[str, Any]) -> Damage:
    def write(path: Path) -> None:
        path.write_text(json.dumps(document))

    return write


@dataclass(frozen=True)
class Damaged:
    """A command of `CASES`, and one damage of one of its files."""

    command: str
    file: str
    label: str
    damage: Damage


def list_whole_file_damages(name: str) -> list[Damaged]:
    """Return every damage of a whole file, for one command."""
    return [
        Damaged(name, file, label, damage)
        for file in CASES[name].files
        for label, damage in WHOLE_FILE_DAMAGES.items()
    ]


def list_shared_field_damages(project: Path, name: str) -> list[Damaged]:
    """Return one command's share of the damages of fields.

    The commands that read a file share the damages of its fields, so each damage is tried once.
    """
    found = []
    for file in CASES[name].files:
        readers = [reader for reader, case in CASES.items() if file in case.files]
        damages = list(list_field_damages(project / file).items())
        for label, damage in damages[readers.index(name) :: len(readers)]:
            found.append(Damaged(name, file, label, damage))
    return found


@contextlib.contextmanager
def damaged(path: Path, damage: Damage) -> Iterator[None]:
    """Damage a file inside the block, and restore it at the end."""
    content, mode = path.read_bytes(), path.stat().st_mode
    try:
        damage(path)
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
