"""Name the files of a run directory, and write its JSON documents atomically.

    recipe.yaml  manifest.json  metrics.jsonl  status.json  checkpoints/  adapter/

A JSON document is first written to another name, flushed to disk and then renamed. So a reader (a
monitor, a scheduler, the next start of the run) never sees an incomplete document. The meaning of
a file belongs to the room that writes it; this file only knows the paths.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.errors import ModelError, RecipeError, TrainingError
from lora_sft.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CHECKPOINT_PREFIX,
    MANIFEST_FILE,
)
from lora_sft.shown_text import hide_secrets

ANYONE = 0o666
ONLY_OWNER = 0o600


def write_text_atomically(path: Path, text: str, mode: int = ANYONE) -> None:
    """Replace `path` by `text` in one step: stage, fsync, rename (POSIX rename is atomic).

    `mode` is that of the file; the user's umask takes from it.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.staged")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON document atomically, indented, keys in the order given."""
    write_text_atomically(path, _dump_json(document))


def write_recorded_text(path: Path, text: str) -> None:
    """Write a text that holds the settings of a recipe.

    It keeps addresses as they are written, because a later start reads them again. If an
    address has a password or a query, only the owner of the file can read the file.
    """
    holds_secrets = hide_secrets(text) != text
    write_text_atomically(path, text, ONLY_OWNER if holds_secrets else ANYONE)


def _dump_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of the files of one run, below `path`."""

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
    def probe(self) -> Path:
        """The folder of the trial save before the first step."""
        return self.checkpoints / "_probe"

    @property
    def validation_sample(self) -> Path:
        return self.path / "validation_sample.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def is_run(self) -> bool:
        """Whether the directory holds a checkpoint or an adapter.

        A directory without both is not a run, and another recipe may use it.
        """
        return bool(self.list_checkpoints()) or (self.adapter / ADAPTER_CONFIG_FILE).exists()

    @property
    def is_finished(self) -> bool:
        """Whether the last start of this run succeeded and wrote an adapter."""
        status = self.read_status()
        names = (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)
        has_adapter = all((self.adapter / name).exists() for name in names)
        return status is not None and status.get("exit_code") == 0 and has_adapter

    def list_checkpoints(self) -> list[Path]:
        """Return the checkpoint folders, oldest step first."""
        found = [
            (int(step), folder)
            for folder in self.checkpoints.glob(f"{CHECKPOINT_PREFIX}*")
            if (step := folder.name.removeprefix(CHECKPOINT_PREFIX)).isdigit()
        ]
        return [folder for _, folder in sorted(found)]

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe."""
        write_recorded_text(self.recipe, text)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which holds the resolved recipe too."""
        write_recorded_text(self.manifest, _dump_json(manifest))

    def create(self) -> RunDirectory:
        """Make the directory.

        Raises: RecipeError if the directory cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"cannot make the run directory: {error.strerror}",
                f"{self.path}  output_dir",
                "set output_dir to a directory that this user can write",
            ) from error
        return self

    def check_writable(self) -> None:
        """Check that files can be written into the directory, `checkpoints/` and `adapter/`.

        These two may be links, for example to another disk. The adapter is written only after the
        last step.

        Raises: RecipeError if a file cannot be written.
        """
        for folder in (self.path, self.checkpoints, self.adapter):
            try:
                if os.path.lexists(folder):
                    tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise RecipeError(
                    f"cannot write into {folder}: {error.strerror}",
                    f"{self.path}  output_dir",
                    "let this user write there, or set another output_dir",
                ) from error

    def check_not_removed(self) -> None:
        """Check that the manifest, which the start of the run wrote, is still there.

        Raises: TrainingError if it is gone.
        """
        if not self.manifest.exists():
            raise TrainingError(
                "the output directory was removed, or its manifest.json, while the run trained",
                str(self.path),
                "restore it from a copy if you have one, and start the same command again",
            )

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """Return one of this run's JSON documents; None if it is missing or damaged.

        Raises: OSError if it cannot be read, for example without permission.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError):
            return None
        except (ValueError, RecursionError):  # ValueError: not UTF-8, or not JSON
            return None
        return document if isinstance(document, dict) else None

    def read_status(self) -> dict[str, Any] | None:
        """Return the document that `write_status` wrote; None while a start is running."""
        return self.read_json(self.status)

    def read_template_date(self) -> str | None:
        """Return the date that the run's chat template showed; None if it shows no date."""
        data = (self.read_json(self.manifest) or {}).get("data")
        date = data.get("template_date") if isinstance(data, dict) else None
        return date if isinstance(date, str) else None

    def write_status(self, exit_code: int, reason: str, step: int, *, state_saved: bool) -> None:
        """Write how this start ended, because other launchers return only their own exit code.

        Args:
            exit_code: The exit code of the command.
            reason: Why it ended, in words for the user; empty if the run is finished.
            step: The last optimizer step whose state is on disk; the same command continues from
                there. 0 if there is no intact checkpoint.
            state_saved: Whether this start saved its state at its end. True if the run is finished,
                if a signal stopped it at a saved step, or if an evaluation or an export failed
                after the state was saved. False after another error, and after a signal outside the
                training loop. Then `step` is that of the last intact checkpoint, and
                the training after it is lost. `launch` reads this field: a launcher may have
                stopped a run that saved nothing.
        """
        status = {"exit_code": exit_code, "reason": reason, "step": step}
        write_json(self.status, {**status, "state_saved": state_saved})

    def clear_status(self) -> None:
        """Remove the status of an earlier start."""
        self.status.unlink(missing_ok=True)


def is_run(path: Path) -> bool:
    """Return whether `path` is a run directory with an adapter; if not, it is a model folder.

    Raises: ModelError if the folder does not exist, or if the run's training is not complete.
    """
    if not path.exists():
        raise ModelError("no such folder", str(path), "give a run directory or a model folder")
    run = RunDirectory(path)
    if run.manifest.exists() and not (run.adapter / ADAPTER_CONFIG_FILE).exists():
        raise ModelError(
            "this run has no adapter yet: its training is not complete",
            str(path),
            f"continue the training: lora-sft train {run.recipe}",
        )
    return run.recipe.exists() and run.adapter.is_dir()
