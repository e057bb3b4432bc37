"""Find the files that runs wrote into an output directory, and delete them and no other file.

A user may keep notes beside the files of a run, also in `adapter/` and `checkpoints/`. So a folder
is never deleted with everything in it. A sealed checkpoint lists its files in its manifest. In
other folders a file belongs to a run if it has a name that runs write.

Each of these folders may be a link, for example to a larger disk. Then the files behind the link
are deleted. A link inside such a folder is deleted itself, but never what it points to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from lora_sft.errors import RecipeError
from lora_sft.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CARD_FILE,
    CHAT_TEMPLATE_FILE,
    GENERATION_CONFIG_FILE,
    MANIFEST_FILE,
    ORIGIN_FILE,
    SENTENCEPIECE_FILE,
    TOKENIZER_CONFIG_FILE,
    TRAINER_STATE_FILE,
)
from lora_sft.run_directory import RunDirectory

# Names of files relative to their folder. `*` also stands for slashes.
STAGED_FILES = (".*.staged", ".tmp*")  # a killed process leaves them: ours, and safetensors'
TOKENIZER_FILES = (
    TOKENIZER_CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
    SENTENCEPIECE_FILE,
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
SAVED_ADAPTER_FILES = (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    ORIGIN_FILE,
    *TOKENIZER_FILES,
    *STAGED_FILES,
)
ADAPTER_FILES = (*SAVED_ADAPTER_FILES, CARD_FILE, GENERATION_CONFIG_FILE, "Modelfile")
CHECKPOINT_FILES = (
    MANIFEST_FILE,  # the first: a checkpoint without its manifest is never loaded
    TRAINER_STATE_FILE,
    *SAVED_ADAPTER_FILES,
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    # DeepSpeed
    "global_step*/*",
    "latest",
    "zero_to_fp32.py",
)


def remove_run(run: RunDirectory) -> None:
    """Delete the files that runs wrote into `run`; other files stay.

    The files are listed again after the deletion: the next run must not find an old checkpoint.

    Raises: RecipeError if a file cannot be deleted.
    """
    try:
        for path in list_written(run):
            path.unlink()
        for folder in (*run.list_checkpoints(), run.probe):
            _remove_if_empty(folder)
        _remove_empty_folders(run.adapter)
        left = [str(path) for path in list_written(run)]
    except OSError as error:
        left = [f"{error.filename}: {error.strerror}"]
    if left:
        raise RecipeError(
            f"--overwrite cannot delete a file of the old run: {left[0]}",
            f"{run.path}  output_dir",
            "delete the old run yourself, or set another output_dir",
        )


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete the files of a checkpoint, and its folder if no other file is in it.

    Raises: OSError if a file cannot be deleted.
    """
    for path in list_checkpoint_files(checkpoint):
        path.unlink()
    _remove_if_empty(checkpoint)


def list_written(run: RunDirectory) -> list[Path]:
    """Return the files that runs wrote into `run`, in the order in which they must be deleted.

    If the deletion is interrupted, a new start must still see that a run wrote the rest. So the
    manifest of the run is the last.
    """
    files = [run.status]
    for checkpoint in (*run.list_checkpoints(), run.probe):
        files += list_checkpoint_files(checkpoint)
    files += list_adapter_files(run)
    files += [run.metrics, run.validation_sample, run.recipe, run.manifest]
    return [path for path in files if os.path.lexists(path)]


def list_adapter_files(run: RunDirectory) -> list[Path]:
    """Return the files in the adapter folder of `run` that have names which runs write."""
    return [path for name, path in _walk(run.adapter) if _has_name(name, ADAPTER_FILES)]


def list_checkpoint_files(checkpoint: Path) -> list[Path]:
    """Return the files in a checkpoint that runs wrote, the manifest first."""
    sealed = _read_sealed_names(checkpoint)
    found = [
        (name, path)
        for name, path in _walk(checkpoint)
        if name in sealed or _has_name(name, CHECKPOINT_FILES)
    ]
    return [path for _, path in sorted(found, key=lambda each: each[0] != MANIFEST_FILE)]


def _read_sealed_names(checkpoint: Path) -> frozenset[str]:
    """Return the names in the manifest of a checkpoint; empty if it is missing or damaged."""
    try:
        document = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        return frozenset(document["files"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return frozenset()


def _has_name(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below `folder` with its relative name; links to folders count as files.

    Raises: OSError if a folder cannot be read: its files must not count as deleted.
    """
    if not folder.is_dir():
        return
    for place, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(place) / name
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    raise error


def _remove_if_empty(folder: Path) -> None:
    """Delete a folder that holds no file any more; of a linked folder, the link too."""
    _remove_empty_folders(folder)
    if not folder.is_symlink():
        return
    target = folder.resolve()
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
        folder.unlink()


def _remove_empty_folders(folder: Path) -> None:
    """Delete `folder` and the folders in it that are empty; a link stays."""
    for place, _, _ in os.walk(folder, topdown=False):
        if not Path(place).is_symlink():
            with suppress(OSError):  # the folder is not empty
                Path(place).rmdir()
