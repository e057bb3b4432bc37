"""Rules about settings that the schema has, but that this version does not support yet.

They are refused by name, so that no setting is ignored silently.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding


def settings_work_in_this_version(recipe: Recipe) -> Iterator[Finding]:
    """Refuse values that the schema has but this version does not support yet.

    The schema has them already so that recipes stay the same when a later version supports them.
    """
    train = recipe.train
    refused = (
        (bool(recipe.tokenizer.new_tokens), "tokenizer.new_tokens", "tokenizer.new_tokens: []"),
        (
            bool(train.get("save_only_model")),
            "train.save_only_model: true",
            "train.save_only_model: false",
        ),
        (
            isinstance(recipe.adapter.lora.get("init_lora_weights"), str)
            and recipe.adapter.lora["init_lora_weights"] not in ("gaussian", "orthogonal"),
            "adapter.init_lora_weights",
            "adapter.init_lora_weights: true",
        ),
        (
            train["per_device_train_batch_size"] == "auto",
            "train.per_device_train_batch_size: auto",
            "train.per_device_train_batch_size: 1",
        ),
    )
    for is_used, setting, line in refused:
        if is_used:
            yield _refuse_setting(setting.partition(":")[0], setting, line)


def checkpointing_is_on_or_off(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `auto` and a number of layers: both need a memory plan, which does not exist yet."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        value = recipe.train.get(name)
        if value is not None and not isinstance(value, bool):
            path = _find_written_path(recipe, name)
            yield _refuse_setting(path, f"{path}: {value}", f"{path}: true")


def push_happens_after_training(recipe: Recipe) -> Iterator[Finding]:
    """Refuse uploads during training: at each save the Trainer would upload the run directory."""
    if recipe.train.get("push_to_hub"):
        what = "train.push_to_hub would upload during training; only export uploads a model"
        fix = "write export.push_to_hub: your-name/the-model, and delete train.push_to_hub"
        yield Finding(("train.push_to_hub",), what, fix)


def _refuse_setting(path: str, setting: str, line: str) -> Finding:
    return Finding((path,), f"{setting} is not available in this version", f"write {line}")


def _find_written_path(recipe: Recipe, name: str) -> str:
    """Return the path that the person wrote: the current name of a setting or its older name."""
    older = f"train.{name.replace('activation', 'gradient')}"
    path = f"train.{name}"
    is_renamed = (
        recipe.is_written(older)
        and recipe.where(older)[: -len(older)] == (recipe.where(path)[: -len(path)])
    )
    return older if is_renamed else path
