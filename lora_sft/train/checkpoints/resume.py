"""Is what lies in the output directory this run, and where does it go on?

The same recipe started again must never lose work, and another recipe must never train into
this one's folder. The resolved recipe in the manifest decides.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_sft.errors import RecipeError, ResumeMismatch, TrainingError
from lora_sft.file_names import ADAPTER_CONFIG_FILE, CHECKPOINT_PREFIX, TRAINER_STATE_FILE
from lora_sft.log import say
from lora_sft.recipe import Recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.sealing import find_damage, read_manifest
from lora_sft.train.zero import has_shards

# What may differ between two starts of the same run: how it is watched and saved.
FREE_PREFIXES = ("train.logging_", "train.save_", "train.eval_", "train.report_to")
# The length of the run may grow.
BUDGET_FIELDS = ("train.max_steps", "train.num_train_epochs")


@dataclass(frozen=True)
class StartingPoint:
    """Where a start begins: at step 0, at a checkpoint, or nowhere (the run is finished).

    `discard`: what the directory holds was given up by the user and is to be removed first.
    `recorded`: the manifest of the checkpoint's run, which need not be the run that goes on.
    `run_id`: what the run's own merge is known by, from one start to the next.
    """

    checkpoint: Path | None = None
    finished: bool = False
    discard: bool = False
    recorded: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""

    def needs_conversion(self, world_size: int) -> bool:
        """Whether DeepSpeed's states were written by another number of processes."""
        if self.checkpoint is None or not has_shards(self.checkpoint):
            return False
        return (read_manifest(self.checkpoint) or {}).get("world_size") != world_size

    @property
    def template_date(self) -> str | None:
        """The date that the template was shown when the run began, if it reads the clock."""
        return self.get_recorded("data").get("template_date")

    def get_recorded(self, section: str) -> Mapping[str, Any]:
        """A section of that manifest; empty where there is none, or no checkpoint."""
        return self.recorded.get(section) or {}


def find_starting_point(
    run: RunDirectory, recipe: Recipe, resume: str, overwrite: bool
) -> StartingPoint:
    """Decide how this start relates to what is in the run directory.

    `resume` is `auto`, `never` or the path of a checkpoint.

    Raises: RecipeError where another run is in the way; TrainingError where the checkpoint
    asked for is incomplete.
    """
    start = _decide(run, recipe, resume, overwrite)
    is_same = start.discard or not find_differences(*_compare_recipes(run, recipe))
    known = (run.read_json(run.manifest) or {}).get("id") if is_same else None
    start = replace(start, run_id=known or secrets.token_hex(8))
    if start.checkpoint is None:
        return start
    own = _find_run_of(start.checkpoint, run)
    return replace(start, recorded=own.read_json(own.manifest) or {})


def _find_run_of(checkpoint: Path, run: RunDirectory) -> RunDirectory:
    """The run that wrote a checkpoint: `run`, or another. A folder of checkpoints and each of them
    may be a link to a larger disk."""
    if checkpoint.parent.resolve() == run.checkpoints.resolve():
        return run
    return RunDirectory(checkpoint.resolve().parent.parent)


def _decide(run: RunDirectory, recipe: Recipe, resume: str, overwrite: bool) -> StartingPoint:
    _refuse_own_sources(run, recipe)
    if overwrite:
        _refuse_both(run, resume)
        return StartingPoint(discard=True)
    if run.is_run and _was_never_saved(run) and resume in ("auto", "never"):
        say(f"{run.checkpoints}: no checkpoint was ever finished; starting anew")
        return StartingPoint()
    if run.is_run:
        _refuse_other_run(run, recipe)
    if resume not in ("auto", "never"):
        return StartingPoint(_check_chosen(Path(resume), run, recipe))
    if not run.is_run:
        return StartingPoint()
    if resume == "never":
        raise RecipeError(
            "the output directory holds this run already, and --resume never was given",
            f"{run.path}  output_dir",
            "add --overwrite to train it again from step 0, or drop --resume never",
        )
    if run.is_finished and not _is_longer(run, recipe):
        return StartingPoint(finished=True)
    checkpoint = find_last_intact(run)
    if checkpoint is None:
        raise RecipeError(
            "the output directory holds this run, but no complete checkpoint to go on from",
            f"{run.path}  output_dir",
            "add --overwrite to train it again from step 0, or choose another output_dir",
        )
    return StartingPoint(checkpoint)


def _refuse_own_sources(run: RunDirectory, recipe: Recipe) -> None:
    """Refuse an output directory in which a run would write over what it is made from."""
    own_recipe = recipe.source.resolve() == run.recipe.resolve()
    if own_recipe and not run.manifest.exists():
        raise RecipeError(
            "the run would write its resolved recipe over this recipe",
            recipe.where("output_dir"),
            "set output_dir to another folder than the recipe's",
        )
    start = recipe.adapter.init_from_location
    if recipe.adapter.init_from and Path(start).resolve().is_relative_to(run.path.resolve()):
        raise RecipeError(
            "the run would write over the adapter that it continues from",
            recipe.where("adapter.init_from"),
            "set output_dir to another folder than that adapter's run",
        )


def _refuse_both(run: RunDirectory, resume: str) -> None:
    if resume not in ("auto", "never"):
        raise RecipeError(
            "--overwrite gives up a run, and --resume goes on with one",
            f"{run.path}  --resume {resume}",
            "give one of the two",
        )


def _check_chosen(checkpoint: Path, run: RunDirectory, recipe: Recipe) -> Path:
    """The checkpoint that the user named, if it is of this very run and nothing is past it."""
    _check_complete(checkpoint, run)
    fields = find_differences(*_compare_recipes(_find_run_of(checkpoint, run), recipe))
    if fields:
        raise ResumeMismatch(
            f"the checkpoint is of another run; these fields differ: {', '.join(fields[:8])}",
            f"{checkpoint}  --resume",
            "use the recipe of its run, or continue its adapter with adapter.init_from",
        )
    step = read_checkpoint_state(checkpoint)["global_step"]
    later = [
        folder.name
        for folder in run.list_checkpoints()
        if int(folder.name.removeprefix(CHECKPOINT_PREFIX)) > step
    ]
    if later:
        raise RecipeError(
            f"later checkpoints are in the way: {', '.join(later)}",
            f"{run.checkpoints}  --resume {checkpoint}",
            "move or delete them: the run cannot go on from two places",
        )
    return checkpoint


def remove_run(run: RunDirectory) -> None:
    """Delete what a run wrote, and nothing else that lies in the folder."""
    for folder in (run.checkpoints, run.adapter):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (run.recipe, run.manifest, run.metrics, run.status, run.validation_sample):
        file.unlink(missing_ok=True)


def _was_never_saved(run: RunDirectory) -> bool:
    """Whether a run was killed inside its first save: nothing is there that could be gone on with.

    Checkpoints of another program, with no run of ours around them, are none of our business.
    """
    has_adapter = (run.adapter / ADAPTER_CONFIG_FILE).exists()
    is_ours = bool(_recorded_recipe(run)) and not has_adapter
    return is_ours and not any(map(read_manifest, run.list_checkpoints()))


def find_last_intact(run: RunDirectory) -> Path | None:
    """The newest checkpoint in which every file is as it was written; says which were not."""
    for checkpoint in reversed(run.list_checkpoints()):
        damage = find_damage(checkpoint)
        if not damage:
            return checkpoint
        say(f"passed over {checkpoint}: {damage}")
    return None


def read_checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's counters in a checkpoint (`global_step`, `max_steps`, ...)."""
    state: dict[str, Any] = json.loads((checkpoint / TRAINER_STATE_FILE).read_text())
    return state


def find_best_checkpoint(run: RunDirectory, checkpoint: Path) -> Path | None:
    """The best checkpoint up to this one, by its name: in `run`, else beside the one gone on from,
    else where the trainer's counters say. They hold an absolute path, and a run may be moved."""
    named = read_checkpoint_state(checkpoint).get("best_model_checkpoint")
    if named is None:
        return None
    name = Path(named).name
    places = (run.checkpoints / name, checkpoint.parent / name, Path(named))
    best = next((place for place in places if place.is_dir()), None)
    fault = f"is not in {run.checkpoints}" if best is None else _find_fault(best, run)
    if fault:
        say(f"warning: {name}, the best so far, {fault}; it is forgotten, score and all")
        return None
    return best


def _find_fault(best: Path, run: RunDirectory) -> str:
    damage = find_damage(best)
    if damage:
        return f"is damaged ({damage})"
    return "" if _may_be_loaded(best, run) else f"is in another directory ({best})"


def _may_be_loaded(checkpoint: Path, run: RunDirectory) -> bool:
    """Whoever made a folder made its hashes too, and DeepSpeed's states run code when they load:
    they are the run's own, or left alone."""
    return not has_shards(checkpoint) or checkpoint.resolve().is_relative_to(run.path.resolve())


def _check_complete(checkpoint: Path, run: RunDirectory) -> None:
    damage = find_damage(checkpoint)
    if damage:
        raise TrainingError(
            f"this is no complete checkpoint: {damage}",
            f"{checkpoint}  --resume",
            "give a folder checkpoints/checkpoint-N of a run, or use --resume auto",
        )
    if not _may_be_loaded(checkpoint, run):
        raise TrainingError(
            "DeepSpeed's states are pickles, which can run code, and are loaded from the run's own "
            "directory alone",
            f"{checkpoint}  --resume",
            "set output_dir to that run's directory, if you trust who wrote it",
        )


def find_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted fields in which two resolved recipes differ, of those that make it another run."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
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
    before = dict(_flatten(_recorded_recipe(run)))
    after = dict(_flatten(recipe.to_dict(absolute_paths=True)))
    return any(before.get(field) != after.get(field) for field in BUDGET_FIELDS)


def _recorded_recipe(run: RunDirectory) -> dict[str, Any]:
    manifest = run.read_json(run.manifest) or {}
    recipe: dict[str, Any] = manifest.get("recipe", {})
    return recipe


def _compare_recipes(run: RunDirectory, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe of a run and that of this start, in the same terms.

    Where only the accumulation stood in the first, the other may state the rows of a step instead:
    it is the same run if they are as many as they were.
    """
    old, new = _recorded_recipe(run), recipe.to_dict(absolute_paths=True)
    plan = (run.read_json(run.manifest) or {}).get("plan") or {}
    train = old.get("train", {})
    if new["train"].get("global_batch_size") and not train.get("global_batch_size") and plan:
        stated = {"global_batch_size": plan["global_batch_size"]}
        stated["gradient_accumulation_steps"] = new["train"].get("gradient_accumulation_steps")
        old = {**old, "train": {**train, **stated}}
    return old, new


def _refuse_other_run(run: RunDirectory, recipe: Recipe) -> None:
    recorded = _recorded_recipe(run)
    if not recorded:
        raise RecipeError(
            "the output directory holds an adapter or checkpoints of something else",
            f"{run.path}  output_dir",
            "choose another output_dir, or add --overwrite",
        )
    before, after = _compare_recipes(run, recipe)
    fields = find_differences(before, after)
    if not fields:
        return
    old, new = dict(_flatten(before)), dict(_flatten(after))
    shown = "; ".join(f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in fields[:8])
    raise RecipeError(
        f"the output directory holds another run; {len(fields)} fields differ: {shown}",
        f"{run.path}  output_dir",
        f"to go on with that run: lora-sft train {run.recipe}; else choose another output_dir, "
        "or add --overwrite to lose it",
    )


def _flatten(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(document, Mapping) and document:
        for key, value in document.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(document, list) and document:
        for index, value in enumerate(document):
            yield from _flatten(value, f"{prefix}.{index}")
    else:
        yield prefix, document
