"""Rules about the section `train`: precision, evaluation, saving and steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding
from lora_sft.recipe.schema import train_fields

BEST_METRICS = ("loss", "eval_loss")


def only_one_mixed_precision(recipe: Recipe) -> Iterator[Finding]:
    """Refuse bf16 together with fp16: the Trainer can use only one of them."""
    for pair in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if all(recipe.train.get(name) for name in pair):
            paths = tuple(f"train.{name}" for name in pair)
            yield Finding(paths, f"{' and '.join(pair)} are both true", f"delete {paths[1]}")


def checkpointing_names_agree(recipe: Recipe) -> Iterator[Finding]:
    """Refuse different values of `activation_checkpointing` and its older name.

    The older name is `gradient_checkpointing`.
    """
    for suffix in ("", "_kwargs"):
        names = (f"activation_checkpointing{suffix}", f"gradient_checkpointing{suffix}")
        if names[0] in recipe.train and names[1] in recipe.train:
            paths = (f"train.{names[0]}", f"train.{names[1]}")
            what = f"{names[0]} and its older name {names[1]} have different values"
            yield Finding(paths, what, f"delete {paths[1]}")


def evaluation_has_validation_rows(recipe: Recipe) -> Iterator[Finding]:
    """Refuse evaluation during training without validation rows."""
    if recipe.data.validation is not None:
        return
    for name in ("eval_strategy", "eval_on_start", "do_eval"):
        if _find_value(recipe, name) not in (False, "no"):
            what = f"train.{name} needs validation rows, but data.validation is not set"
            fix = "write data.validation: {fraction: 0.05}"
            yield Finding((f"train.{name}", "data.validation"), what, fix)


def evaluation_is_on_if_its_results_are_used(recipe: Recipe) -> Iterator[Finding]:
    """Refuse settings that use the results of evaluations if evaluation is off."""
    if _find_value(recipe, "eval_strategy") != "no":
        return
    train = recipe.train
    watchers = {
        "load_best_model_at_end": bool(train.get("load_best_model_at_end")),
        "early_stopping_patience": train["early_stopping_patience"] is not None,
        "save_strategy": train.get("save_strategy") == "best",
        "lr_scheduler_type": train["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy"),
    }
    for name in (name for name, watches in watchers.items() if watches):
        what = f"train.{name} needs evaluations, but train.eval_strategy is no"
        fix = "write train.eval_strategy: epoch"
        yield Finding((f"train.{name}", "train.eval_strategy"), what, fix)


def early_stopping_keeps_the_best_model(recipe: Recipe) -> Iterator[Finding]:
    """Refuse early stopping that would keep the last model instead of the best one."""
    stops_early = recipe.train["early_stopping_patience"] is not None
    if stops_early and not recipe.train.get("load_best_model_at_end"):
        what = "early stopping is on, but the best model would not be kept"
        fix = "write train.load_best_model_at_end: true"
        yield Finding(("train.early_stopping_patience", "train.load_best_model_at_end"), what, fix)


def best_model_is_saved_when_evaluated(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a schedule in which the best model may not be saved.

    The best model can only be loaded if it was saved at the step of its evaluation.
    """
    evaluates, saves = (
        _find_value(recipe, "eval_strategy"),
        _find_value(recipe, "save_strategy"),
    )
    if not recipe.train.get("load_best_model_at_end") or evaluates == "no" or saves == "best":
        return
    if evaluates != saves:
        paths = ("train.save_strategy", "train.eval_strategy", "train.load_best_model_at_end")
        what = (
            f"the best model may not be saved: train.eval_strategy is {evaluates}, "
            f"but train.save_strategy is {saves}"
        )
        yield Finding(paths, what, f"write train.save_strategy: {evaluates}")
    elif evaluates == "steps" and not _divides(*_steps_between(recipe)):
        eval_steps, save_steps = _steps_between(recipe)
        paths = ("train.save_steps", "train.eval_steps", "train.load_best_model_at_end")
        what = f"save_steps {save_steps:g} is not a multiple of eval_steps {eval_steps:g}"
        yield Finding(paths, what, f"write train.save_steps: {eval_steps:g}")


def best_metric_is_reported(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a `metric_for_best_model` that no evaluation during training reports."""
    metric = recipe.train.get("metric_for_best_model")
    if metric is not None and metric not in BEST_METRICS:
        what = f'evaluation during training does not report the metric "{metric}"'
        yield Finding(
            ("train.metric_for_best_model",), what, "write train.metric_for_best_model: eval_loss"
        )


def micro_batch_size_is_fixed(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `auto_find_batch_size`.

    It halves the micro-batch during a run, and so it changes the global batch too.
    """
    if recipe.train.get("auto_find_batch_size"):
        what = "train.auto_find_batch_size would change the global batch size without a message"
        fix = "write train.auto_find_batch_size: false"
        yield Finding(("train.auto_find_batch_size",), what, fix)


def only_one_machine_saves(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `save_on_each_node`.

    All machines share the run directory, so several of them would write the same checkpoint.
    """
    if recipe.train.get("save_on_each_node"):
        what = (
            "train.save_on_each_node would write each checkpoint several times: "
            "all machines share output_dir"
        )
        fix = "write train.save_on_each_node: false"
        yield Finding(("train.save_on_each_node",), what, fix)


def max_steps_is_positive_or_off(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a `max_steps` below 1. Only -1 is allowed: it is the library's value for no limit."""
    steps = recipe.train.get("max_steps", -1)
    if steps != -1 and steps < 1:
        what = f"train.max_steps must be at least 1, or -1 for no limit, not {steps}"
        yield Finding(("train.max_steps",), what, "delete the line, or write train.max_steps: 100")


def _find_value(recipe: Recipe, name: str) -> Any:
    """Return a train setting, or the library's default if the recipe does not set it."""
    return recipe.train.get(name, train_fields()[name].default)


def _steps_between(recipe: Recipe) -> tuple[float, float]:
    """Return the steps between evaluations and the steps between saves.

    Without `eval_steps`, the Trainer evaluates at each log.
    """
    eval_steps = _find_value(recipe, "eval_steps") or _find_value(recipe, "logging_steps")
    return eval_steps, _find_value(recipe, "save_steps")


def _divides(part: float, whole: float) -> bool:
    """Return whether `whole` is a multiple of `part`.

    Below 1, both are fractions of the run, as in the Trainer.
    """
    if part < 1 or whole < 1:
        scale = 1_000_000
        return part < 1 and whole < 1 and round(whole * scale) % round(part * scale) == 0
    return whole % part == 0
