"""The folder that a run leaves behind: which file is where, and how each is written.

    recipe.yaml  manifest.json  metrics.jsonl  status.json  checkpoints/  adapter/

Every JSON document is staged beside its place, flushed to disk and renamed, so that a reader
(a monitor, a scheduler, the next start of the same run) never sees half of one. What the files
mean is known by the rooms that write them; this file only keeps their places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.errors import ModelError, RecipeError
from lora_sft.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CHECKPOINT_PREFIX,
    MANIFEST_FILE,
)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: stage, fsync, rename (POSIX rename is atomic)."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.staged")
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON document atomically, indented, keys in the order given."""
    write_text_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class RunDirectory:
    """Names of the files of one run below `path`."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST_FILE

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def validation_sample(self) -> Path:
        return self.path / "validation_sample.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def is_run(self) -> bool:
        """Whether something was trained here: a checkpoint or an adapter lies inside.

        A directory without either is not a run and may be used by another recipe.
        """
        return bool(self.list_checkpoints()) or (self.adapter / ADAPTER_CONFIG_FILE).exists()

    @property
    def is_finished(self) -> bool:
        """Whether the last start of this run reached its end and left an adapter."""
        status = self.read_status()
        adapter = self.adapter / ADAPTER_WEIGHTS_FILE
        return status is not None and status.get("exit_code") == 0 and adapter.exists()

    def list_checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest step first."""
        found = [
            (int(step), folder)
            for folder in self.checkpoints.glob(f"{CHECKPOINT_PREFIX}*")
            if (step := folder.name.removeprefix(CHECKPOINT_PREFIX)).isdigit()
        ]
        return [folder for _, folder in sorted(found)]

    def create(self) -> RunDirectory:
        """Make the directory.

        Raises: RecipeError where something that is no directory stands in the way.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise RecipeError(
                f"cannot make the run directory: {error.strerror}",
                f"{self.path}  output_dir",
                "set output_dir to a directory that can be written",
            ) from error
        return self

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """One of this run's JSON documents, or None where it is not there (or not JSON)."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # neither text nor JSON is a ValueError
            return None
        return document if isinstance(document, dict) else None

    def read_status(self) -> dict[str, Any] | None:
        """Return what `write_status` wrote at the end of the last start; None before its end."""
        return self.read_json(self.status)

    def read_template_date(self) -> str | None:
        """The date that the run's chat template was shown, if it reads the clock."""
        data = (self.read_json(self.manifest) or {}).get("data") or {}
        date: str | None = data.get("template_date")
        return date

    def write_status(self, exit_code: int, reason: str, step: int, *, state_saved: bool) -> None:
        """Write how this start ended; a foreign launcher reports only its own exit code.

        Args:
            exit_code: The exit code of the command.
            reason: Why it ended, for a person; empty where the run is finished.
            step: The optimizer step up to which the work is on disk. The same command goes on
                from there. 0 where there is no intact checkpoint.
            state_saved: Whether this start saved its state as it ended. True where the run is
                finished, and where a signal stopped it at a step that it saved. False after an
                error, and after a signal before or after the training loop: then `step` is that
                of the last intact checkpoint, and the training since then is lost. `launch`
                reads it: a stop that saved nothing may be a launcher ending its processes.
        """
        status = {"exit_code": exit_code, "reason": reason, "step": step}
        write_json(self.status, {**status, "state_saved": state_saved})

    def clear_status(self) -> None:
        """Forget the end of an earlier start: this one has not ended yet."""
        self.status.unlink(missing_ok=True)


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory with a trained adapter (else it is a model).

    Raises: ModelError for no folder at all, and for a run not trained to its end.
    """
    if not path.exists():
        raise ModelError("no such folder", str(path), "give a run directory or a model folder")
    run = RunDirectory(path)
    if run.manifest.exists() and not (run.adapter / ADAPTER_CONFIG_FILE).exists():
        raise ModelError(
            "this run has no adapter yet: its training has not come to an end",
            str(path),
            f"go on with it: lora-sft train {run.recipe}",
        )
    return run.recipe.exists() and run.adapter.is_dir()
