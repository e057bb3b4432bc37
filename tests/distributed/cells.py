"""Train one tiny recipe in every distributed setting; each setting is trained once for all tests.

A cell is one base model in one setting. The tests run in several workers. A lock lets the first
worker that needs a cell train it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import Outcome, read_metrics, run_lora_sft, run_torchrun
from tests.conftest import make_rows, write_rows

# The settings, by name: (processes, train.deepspeed).
SETTINGS: dict[str, tuple[int, str | None]] = {
    "one": (1, None),
    "ddp": (2, None),
    "zero0": (2, "zero0"),
    "zero1": (2, "zero1"),
    "zero2": (2, "zero2"),
    "zero3": (2, "zero3"),
    "zero2_offload": (2, "zero2_offload"),
    "zero3_offload": (2, "zero3_offload"),
    "zero2_alone": (1, "zero2"),
    "zero3_alone": (1, "zero3"),
}
BASES: dict[str, dict[str, Any]] = {
    "lora": {"model": {"dtype": "float32"}},
    "qlora": {"model": {"dtype": "bfloat16"}, "quantization": "nf4"},
}
STEPS = 6


@dataclass(frozen=True)
class Cell:
    """The trained run of one base model in one distributed setting."""

    run: Path
    recipe: Path
    outcome: Outcome

    def read(self, key: str) -> dict[int, float]:
        return read_metrics(self.run, key)

    @property
    def manifest(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run / "manifest.json").read_text())
        return document


def write_recipe_for(
    folder: Path, model: Path, base: str, setting: str, name: str, **train: Any
) -> Path:
    """Write the recipe of a cell, and return its path; `train` overrides fields of that section."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", make_rows(48))
    sections = BASES[base]
    recipe: dict[str, Any] = {
        **sections,
        "model": {"model_name_or_path": str(model), **sections["model"]},
        "adapter": {"r": 4, "lora_alpha": 8},
        "data": {
            "datasets": [{"path": "train.jsonl"}],
            "validation": {"fraction": 0.2},
            "max_length": 128,
            "packing": False,
        },
        "train": {
            "learning_rate": 1e-2,
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "global_batch_size": 8,
            "logging_steps": 1,
            "save_steps": 3,
            "warmup_steps": 0,
            "activation_checkpointing": False,
            "deepspeed": SETTINGS[setting][1],
            **train,
        },
        "output_dir": str(folder / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe, indent=2))
    return path


def train(processes: int, recipe: Path, *arguments: object) -> Outcome:
    if processes == 1:
        return run_lora_sft("train", recipe, *arguments)
    return run_torchrun(processes, "train", recipe, *arguments)


def make_cell_maker(folder: Path, model: Path) -> Callable[[str, str], Cell]:
    """Return a function that trains a cell, or finds it if it is trained: `cell(base, setting)`."""

    def cell(base: str, setting: str) -> Cell:
        home = folder / base
        home.mkdir(parents=True, exist_ok=True)
        done = home / f"{setting}.json"
        with (home / f"{setting}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            recipe = home / f"{setting}.yaml"
            if not done.exists():
                recipe = write_recipe_for(home, model, base, setting, setting)
                outcome = train(SETTINGS[setting][0], recipe)
                done.write_text(json.dumps([outcome.code, outcome.stdout, outcome.stderr]))
            outcome = Outcome(*json.loads(done.read_text()))
        assert outcome.code == 0, outcome.stderr
        return Cell(home / setting, recipe, outcome)

    return cell
