"""Record the adapter of a finished run in the run's manifest, and notice later if it has changed.

A flipped bit in the weights, or in the config that scales them, changes every answer and gives no
error. The other files of the adapter folder, such as the card, are not recorded: users edit them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_sft.errors import TrainingError
from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.run_manifest import read_run_manifest
from lora_sft.train.checkpoints.sealing import describe_file, find_changed_file

SECTION = "adapter"
RECORDED_FILES = (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)


def record_adapter(run: RunDirectory) -> None:
    """Write the hashes of the adapter into the manifest of the run.

    Raises: TrainingError if the manifest is gone: without it, the file would not mark a run.
    """
    run.check_not_removed()
    manifest = run.read_json(run.manifest) or {}
    files = {name: describe_file(run.adapter / name) for name in RECORDED_FILES}
    run.write_manifest({**manifest, SECTION: files})


def check_adapter_unchanged(run: RunDirectory, find_checkpoint: Callable[[], Path | None]) -> None:
    """Check that the adapter of a finished run is the one that the run wrote.

    Args:
        run: A finished run. Runs of older versions of lora-sft have no record and are not checked.
        find_checkpoint: Returns the newest intact checkpoint, or None.

    Raises: TrainingError if a recorded file is missing or has changed.
    """
    recorded = (read_run_manifest(run) or {}).get(SECTION, {})
    changed = find_changed_file(run.adapter, recorded)
    if changed:
        checkpoint = find_checkpoint()
        again = f"--resume {checkpoint}" if checkpoint is not None else "--overwrite"
        raise TrainingError(
            f"the adapter of this finished run is not the one that it wrote: {changed}",
            str(run.adapter),
            f"to write the adapter again: {again}; or restore the file from a copy",
        )
