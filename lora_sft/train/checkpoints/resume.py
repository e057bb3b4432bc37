"""Decide whether the output directory holds this run, and where the run continues.

If the same recipe is started again, no work may be lost. If another recipe is started, it must not
write into this directory. The resolved recipe in the manifest decides which of the two it is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_sft.errors import RecipeError, ResumeMismatch, TrainingError
from lora_sft.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CHECKPOINT_PREFIX,
    MANIFEST_FILE,
    TRAINER_STATE_FILE,
)
from lora_sft.log import say
from lora_sft.recipe import Recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.finished_adapter import check_adapter_unchanged
from lora_sft.train.checkpoints.output_folder import check_output_files
from lora_sft.train.checkpoints.run_manifest import read_recorded_recipe, read_run_manifest
from lora_sft.train.checkpoints.sealing import find_damage, is_unfinished, read_manifest
from lora_sft.train.checkpoints.signing import OPTION, find_doubt
from lora_sft.train.zero import has_shards
from lora_sft.user_key import KEY_FILE_VARIABLE

# Fields that may differ between two starts of the same run: logging, saving and evaluation.
FREE_PREFIXES = ("train.logging_", "train.save_", "train.eval_", "train.report_to")
# These fields may grow: the run becomes longer.
BUDGET_FIELDS = ("train.max_steps", "train.num_train_epochs")


@dataclass(frozen=True)
class StartingPoint:
    """Where a start begins: at step 0, at a checkpoint, or not at all (the run is finished).

    Attributes:
        checkpoint: The checkpoint to continue from; None to begin at step 0.
        finished: Whether the run is finished, so that there is nothing to do.
        only_exports_left: Whether the adapter is complete, and only the exports failed.
        discard: Whether the old run in the directory must be removed first (`--overwrite`).
        recorded: The manifest of the checkpoint's run. With `--resume PATH` that may be a run in
            another directory.
        run_id: The id of the run, equal in all its starts. The run's own merge has it too.
        trust_checkpoint: Whether to load DeepSpeed's states that this user did not sign.
    """

    checkpoint: Path | None = None
    finished: bool = False
    only_exports_left: bool = False
    discard: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    trust_checkpoint: bool = False

    def needs_conversion(self, world_size: int) -> bool:
        """Return whether another number of processes wrote the checkpoint's DeepSpeed states."""
        if self.checkpoint is None or not has_shards(self.checkpoint):
            return False
        return (read_manifest(self.checkpoint) or {}).get("world_size") != world_size

    @property
    def template_date(self) -> str | None:
        """The date that the chat template showed when the run began; None if it shows no date."""
        return self.get_recorded("data").get("template_date")

    def get_recorded(self, section: str) -> Mapping[str, Any]:
        """Return a section of `recorded`; empty if it is missing or there is no checkpoint."""
        return self.recorded.get(section) or {}


def find_starting_point(
    run: RunDirectory,
    recipe: Recipe,
    resume: str,
    overwrite: bool,
    *,
    trust_checkpoint: bool = False,
) -> StartingPoint:
    """Decide where this start begins, from the contents of the run directory.

    Args:
        run: The run directory.
        recipe: The recipe of this start.
        resume: `auto`, `never` or the path of a checkpoint.
        overwrite: Whether to remove the run in the directory.
        trust_checkpoint: Whether to load DeepSpeed's states that this user did not sign.

    Raises:
        RecipeError: If the directory holds another run or files that no run wrote, or if no
            checkpoint of this run can be used.
        TrainingError: If the checkpoint `resume` is incomplete, or if a checkpoint has DeepSpeed
            states of another author that are not trusted.
    """
    start = _decide(run, recipe, resume, overwrite)
    is_same = start.discard or not find_differences(*_compare_recipes(run, recipe))
    known = (read_run_manifest(run) or {}).get("id") if is_same else None
    start = replace(start, run_id=known or secrets.token_hex(8), trust_checkpoint=trust_checkpoint)
    if start.checkpoint is None:
        return start
    if not trust_checkpoint:
        _check_author(start.checkpoint)
    own = _find_checkpoints_run(start.checkpoint, run)
    return replace(start, recorded=read_run_manifest(own) or {})


def _find_checkpoints_run(checkpoint: Path, run: RunDirectory) -> RunDirectory:
    """Return the run that wrote a checkpoint: `run` or another.

    The folder `checkpoints` and each checkpoint in it may be a link, for example to a larger disk.
    """
    if checkpoint.parent.resolve() == run.checkpoints.resolve():
        return run
    return RunDirectory(checkpoint.resolve().parent.parent)


def _decide(run: RunDirectory, recipe: Recipe, resume: str, overwrite: bool) -> StartingPoint:
    check_output_files(run, recipe)
    if overwrite:
        _refuse_both(run, resume)
        return StartingPoint(discard=True)
    if run.is_run and _was_never_saved(run) and resume in ("auto", "never"):
        say(f"{run.checkpoints}: no checkpoint was finished; starting at step 0")
        return StartingPoint()
    if run.is_run:
        _refuse_damaged_manifest(run, resume)
        _refuse_other_run(run, recipe)
    if resume not in ("auto", "never"):
        return StartingPoint(_check_chosen(Path(resume), run, recipe))
    if not run.is_run:
        return StartingPoint()
    if resume == "never":
        raise RecipeError(
            "the output directory already holds this run, but --resume never was given",
            f"{run.path}  output_dir",
            "add --overwrite to train again from step 0, or remove --resume never to continue",
        )
    is_trained = run.is_finished or _has_only_exports_left(run)
    if is_trained and not _is_longer(run, recipe):
        check_adapter_unchanged(run, lambda: find_last_intact(run))
        return StartingPoint(finished=run.is_finished, only_exports_left=not run.is_finished)
    return StartingPoint(_find_checkpoint(run))


def _find_checkpoint(run: RunDirectory) -> Path:
    """Return the newest intact checkpoint.

    Raises: RecipeError if there is none. It names the damaged ones.
    """
    checkpoint = find_last_intact(run)
    if checkpoint is not None:
        return checkpoint
    damaged = "; ".join(f"{each.name}: {find_damage(each)}" for each in run.list_checkpoints())
    raise RecipeError(
        "the output directory holds this run, but no complete checkpoint to continue from"
        + (f" ({damaged})" if damaged else ""),
        f"{run.path}  output_dir",
        "add --overwrite to train again from step 0, or set another output_dir"
        + (", or restore a checkpoint from a copy" if damaged else ""),
    )


def _has_only_exports_left(run: RunDirectory) -> bool:
    """Return whether a run without checkpoints failed after it had written its adapter."""
    is_saved = (run.read_status() or {}).get("state_saved") is True
    adapter = run.adapter / ADAPTER_WEIGHTS_FILE
    return is_saved and adapter.exists() and not run.list_checkpoints()


def _refuse_damaged_manifest(run: RunDirectory, resume: str) -> None:
    """Refuse to continue a run whose manifest is lost, unless the user names the checkpoint."""
    if read_run_manifest(run) is not None:
        return
    if resume not in ("auto", "never"):
        say(
            f"warning: {run.manifest} is missing or damaged: only the recipe and a sample of the "
            "base model's weights are compared with those of the run"
        )
        return
    checkpoint = find_last_intact(run)
    raise RecipeError(
        f"{MANIFEST_FILE} of this run is missing or damaged, so this start cannot be compared with "
        "the run",
        str(run.manifest),
        (f"to continue without it: --resume {checkpoint}; or " if checkpoint else "")
        + "restore the file from a copy, or add --overwrite to train again from step 0",
    )


def _refuse_both(run: RunDirectory, resume: str) -> None:
    if resume not in ("auto", "never"):
        raise RecipeError(
            "--overwrite removes the old run, but --resume continues it",
            f"{run.path}  --resume {resume}",
            "give only one of the two options",
        )


def _check_chosen(checkpoint: Path, run: RunDirectory, recipe: Recipe) -> Path:
    """Return the checkpoint that the user named.

    Raises: RecipeError if it is of another run, or if the run has later checkpoints.
    """
    _check_complete(checkpoint)
    own = _find_checkpoints_run(checkpoint, run)
    before, after = _compare_recipes(own, recipe)
    is_lost = not before and own is run  # `_refuse_damaged_manifest` has warned
    fields = [] if is_lost else find_differences(before, after)
    if fields:
        raise ResumeMismatch(
            f"the checkpoint is of another run; these fields differ: {', '.join(fields[:8])}",
            f"{checkpoint}  --resume",
            "use the recipe of that run, or start a new run with adapter.init_from: CHECKPOINT",
        )
    step = read_checkpoint_state(checkpoint)["global_step"]
    later = [
        folder.name
        for folder in run.list_checkpoints()
        if int(folder.name.removeprefix(CHECKPOINT_PREFIX)) > step and not find_damage(folder)
    ]
    if later:
        raise RecipeError(
            f"the run has later checkpoints: {', '.join(later)}",
            f"{run.checkpoints}  --resume {checkpoint}",
            "move or delete the later checkpoints, or use --resume auto",
        )
    return checkpoint


def _was_never_saved(run: RunDirectory) -> bool:
    """Return whether this run was killed during its first save, so that no work can be lost."""
    has_adapter = (run.adapter / ADAPTER_CONFIG_FILE).exists()
    return not has_adapter and all(map(is_unfinished, run.list_checkpoints()))


def find_last_intact(run: RunDirectory) -> Path | None:
    """Return the newest checkpoint without a damaged file, and log the damaged ones."""
    for checkpoint in reversed(run.list_checkpoints()):
        damage = find_damage(checkpoint)
        if not damage:
            return checkpoint
        say(f"warning: {checkpoint} is not used: {damage}")
    return None


def read_checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """Return the trainer's state in a checkpoint (`global_step`, `max_steps`, ...)."""
    state: dict[str, Any] = json.loads((checkpoint / TRAINER_STATE_FILE).read_text())
    return state


def find_best_checkpoint(
    run: RunDirectory, checkpoint: Path, *, trust_checkpoint: bool = False
) -> Path | None:
    """Return the best checkpoint up to `checkpoint`, or None.

    The trainer's state has an absolute path, but a run may be moved. So the checkpoint is searched
    by its name: in `run`, then beside `checkpoint`, then at the recorded path.

    Args:
        run: The run directory of this start.
        checkpoint: The checkpoint from which this start continues.
        trust_checkpoint: Whether to load DeepSpeed's states that this user did not sign.
    """
    recorded = read_checkpoint_state(checkpoint).get("best_model_checkpoint")
    if recorded is None:
        return None
    name = Path(recorded).name
    places = (run.checkpoints / name, checkpoint.parent / name, Path(recorded))
    best = next((place for place in places if place.is_dir()), None)
    fault = f"is not in {run.checkpoints}" if best is None else _find_fault(best, trust_checkpoint)
    if fault:
        say(f"warning: the best checkpoint {name} {fault}; it and its score are ignored")
        return None
    return best


def _find_fault(best: Path, trust_checkpoint: bool) -> str:
    damage = find_damage(best)
    if damage:
        return f"is damaged ({damage})"
    doubt = "" if trust_checkpoint else find_doubt(best, read_manifest(best) or {})
    return f"may be of another author ({doubt})" if doubt else ""


def _check_author(checkpoint: Path) -> None:
    """Raise TrainingError if a checkpoint has DeepSpeed states that this user did not sign."""
    doubt = find_doubt(checkpoint, read_manifest(checkpoint) or {})
    if doubt:
        raise TrainingError(
            "the DeepSpeed states of this checkpoint are pickles, which can run code, and nothing "
            f"shows that you wrote them: {doubt}",
            str(checkpoint),
            f"if you trust their author, add {OPTION}; if you wrote them on another machine, set "
            f"{KEY_FILE_VARIABLE} to the key file of that machine",
        )


def _check_complete(checkpoint: Path) -> None:
    damage = find_damage(checkpoint)
    if damage:
        raise TrainingError(
            f"this folder is not a complete checkpoint: {damage}",
            f"{checkpoint}  --resume",
            "give a folder checkpoints/checkpoint-N of a run, or use --resume auto",
        )


def find_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted fields whose difference makes two resolved recipes two runs."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        field
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
        and not field.startswith(FREE_PREFIXES)
        and not (field in BUDGET_FIELDS and _grew(before.get(field), after.get(field)))
        and field != "output_dir"  # the folder may have been moved
    ]


def _grew(old: Any, new: Any) -> bool:
    return isinstance(old, int | float) and isinstance(new, int | float) and new > old


def _is_longer(run: RunDirectory, recipe: Recipe) -> bool:
    before = dict(flatten(read_recorded_recipe(run)))
    after = dict(flatten(recipe.to_dict(absolute_paths=True)))
    return any(before.get(field) != after.get(field) for field in BUDGET_FIELDS)


def _compare_recipes(run: RunDirectory, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe of a run and that of this start, in a form that can be compared.

    If the old recipe has only `gradient_accumulation_steps`, the new one may have
    `global_batch_size` instead. It is the same run if the number of rows per step is equal, so the
    old recipe gets the number that its plan recorded.
    """
    old, new = read_recorded_recipe(run), recipe.to_dict(absolute_paths=True)
    batch_size = (read_run_manifest(run) or {}).get("plan", {}).get("global_batch_size")
    train = old.get("train", {})
    if new["train"].get("global_batch_size") and not train.get("global_batch_size") and batch_size:
        batch = {"global_batch_size": batch_size}
        batch["gradient_accumulation_steps"] = new["train"].get("gradient_accumulation_steps")
        old = {**old, "train": {**train, **batch}}
    return old, new


def _refuse_other_run(run: RunDirectory, recipe: Recipe) -> None:
    before, after = _compare_recipes(run, recipe)
    fields = find_differences(before, after) if before else []
    if not fields:
        return
    old, new = dict(flatten(before)), dict(flatten(after))
    shown = "; ".join(f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in fields[:8])
    raise RecipeError(
        f"the output directory holds another run; {len(fields)} fields differ: {shown}",
        f"{run.path}  output_dir",
        f"to continue that run: lora-sft train {run.recipe}; otherwise set another output_dir, "
        "or add --overwrite to delete that run",
    )


def flatten(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each leaf of a JSON document."""
    if isinstance(document, Mapping) and document:
        for key, value in document.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(document, list) and document:
        for index, value in enumerate(document):
            yield from flatten(value, f"{prefix}.{index}")
    else:
        yield prefix, document
