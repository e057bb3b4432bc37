"""What must hold together in `train`: precision, evaluations, saving and steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding
from lora_sft.recipe.schema import train_fields

BEST_METRICS = ("loss", "eval_loss")


def one_mixed_precision(recipe: Recipe) -> Iterator[Finding]:
    """The Trainer takes one type for its arithmetic."""
    for pair in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if all(recipe.train.get(name) for name in pair):
            paths = tuple(f"train.{name}" for name in pair)
            yield Finding(paths, f"{' and '.join(pair)} are both on", f"delete {paths[1]}")


def one_word_on_checkpointing(recipe: Recipe) -> Iterator[Finding]:
    """`gradient_checkpointing` is the older name of `activation_checkpointing`."""
    for suffix in ("", "_kwargs"):
        names = (f"activation_checkpointing{suffix}", f"gradient_checkpointing{suffix}")
        if names[0] in recipe.train and names[1] in recipe.train:
            paths = (f"train.{names[0]}", f"train.{names[1]}")
            what = f"{names[0]} and its older name {names[1]} disagree"
            yield Finding(paths, what, f"delete {paths[1]}")


def evaluation_needs_rows(recipe: Recipe) -> Iterator[Finding]:
    """Evaluating while training needs rows that are not trained on."""
    if recipe.data.validation is not None:
        return
    for name in ("eval_strategy", "eval_on_start", "do_eval"):
        if _train(recipe, name) not in (False, "no"):
            what = f"train.{name} is on, but there are no validation rows"
            fix = "write data.validation: {fraction: 0.05}"
            yield Finding((f"train.{name}", "data.validation"), what, fix)


def what_watches_evaluation_needs_it(recipe: Recipe) -> Iterator[Finding]:
    """Choosing by a score needs scores."""
    if _train(recipe, "eval_strategy") != "no":
        return
    train = recipe.train
    watchers = {
        "load_best_model_at_end": bool(train.get("load_best_model_at_end")),
        "early_stopping_patience": train["early_stopping_patience"] is not None,
        "save_strategy": train.get("save_strategy") == "best",
        "lr_scheduler_type": train["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy"),
    }
    for name in (name for name, watches in watchers.items() if watches):
        what = f"train.{name} looks at evaluations, but train.eval_strategy is no"
        fix = "write train.eval_strategy: epoch"
        yield Finding((f"train.{name}", "train.eval_strategy"), what, fix)


def early_stopping_keeps_the_best(recipe: Recipe) -> Iterator[Finding]:
    """Stopping after worse evaluations and keeping the worse model defeats the purpose."""
    stops_early = recipe.train["early_stopping_patience"] is not None
    if stops_early and not recipe.train.get("load_best_model_at_end"):
        what = "early stopping compares with the best model, which is not kept"
        fix = "write train.load_best_model_at_end: true"
        yield Finding(("train.early_stopping_patience", "train.load_best_model_at_end"), what, fix)


def the_best_model_is_saved_when_evaluated(recipe: Recipe) -> Iterator[Finding]:
    """The best model can only be loaded if it was saved at the step that showed it."""
    evaluates, saves = _train(recipe, "eval_strategy"), _train(recipe, "save_strategy")
    if not recipe.train.get("load_best_model_at_end") or evaluates == "no" or saves == "best":
        return
    if evaluates != saves:
        paths = ("train.save_strategy", "train.eval_strategy", "train.load_best_model_at_end")
        what = f"the best model may not be saved: evaluation by {evaluates}, saving by {saves}"
        yield Finding(paths, what, f"write train.save_strategy: {evaluates}")
    elif evaluates == "steps" and not _divides(*_steps_between(recipe)):
        eval_steps, save_steps = _steps_between(recipe)
        paths = ("train.save_steps", "train.eval_steps", "train.load_best_model_at_end")
        what = f"save_steps {save_steps:g} is no multiple of eval_steps {eval_steps:g}"
        yield Finding(paths, what, f"write train.save_steps: {eval_steps:g}")


def the_best_metric_exists(recipe: Recipe) -> Iterator[Finding]:
    """The Trainer would look for a number that no evaluation reports."""
    metric = recipe.train.get("metric_for_best_model")
    if metric is not None and metric not in BEST_METRICS:
        what = f'no evaluation during training reports "{metric}"'
        yield Finding(
            ("train.metric_for_best_model",), what, "write train.metric_for_best_model: eval_loss"
        )


def the_micro_batch_stays(recipe: Recipe) -> Iterator[Finding]:
    """`auto_find_batch_size` halves the micro-batch in mid-run and the global batch with it."""
    if recipe.train.get("auto_find_batch_size"):
        what = "train.auto_find_batch_size would change the global batch size unseen"
        fix = "write train.auto_find_batch_size: false"
        yield Finding(("train.auto_find_batch_size",), what, fix)


def one_process_saves(recipe: Recipe) -> Iterator[Finding]:
    """All machines share the run's folder, so that two of them would write the same checkpoint."""
    if recipe.train.get("save_on_each_node"):
        what = (
            "train.save_on_each_node would write each checkpoint twice: machines share output_dir"
        )
        fix = "write train.save_on_each_node: false"
        yield Finding(("train.save_on_each_node",), what, fix)


def steps_are_counted_or_off(recipe: Recipe) -> Iterator[Finding]:
    """-1 is the library's word for "not limited"; nought steps would train nothing."""
    steps = recipe.train.get("max_steps", -1)
    if steps != -1 and steps < 1:
        what = f"train.max_steps must be at least 1, or -1 for no limit, not {steps}"
        yield Finding(("train.max_steps",), what, "delete the line, or write train.max_steps: 100")


def _train(recipe: Recipe, name: str) -> Any:
    """A train setting, or the library's default where the recipe leaves it to the library."""
    return recipe.train.get(name, train_fields()[name].default)


def _steps_between(recipe: Recipe) -> tuple[float, float]:
    """Steps between evaluations (by default those between logs) and between saves."""
    eval_steps = _train(recipe, "eval_steps") or _train(recipe, "logging_steps")
    return eval_steps, _train(recipe, "save_steps")


def _divides(part: float, whole: float) -> bool:
    """Whether `part` goes into `whole`; below 1 both are shares of the run, as in the Trainer."""
    if part < 1 or whole < 1:
        scale = 1_000_000
        return part < 1 and whole < 1 and round(whole * scale) % round(part * scale) == 0
    return whole % part == 0
