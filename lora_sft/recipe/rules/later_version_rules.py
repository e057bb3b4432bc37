"""Settings that the schema knows and this version does not carry out: refused by name.

Nothing that a person asked for is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding


def settings_of_a_later_version(recipe: Recipe) -> Iterator[Finding]:
    """The schema knows these values so that recipes need not change when they come."""
    train = recipe.train
    asked_for = (
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
    for is_asked_for, setting, line in asked_for:
        if is_asked_for:
            yield _later(setting.partition(":")[0], setting, line)


def partial_checkpointing_comes_later(recipe: Recipe) -> Iterator[Finding]:
    """`auto` and a number of layers need the memory plan."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        value = recipe.train.get(name)
        if value is not None and not isinstance(value, bool):
            path = _written_as(recipe, name)
            yield _later(path, f"{path}: {value}", f"{path}: true")


def pushing_waits_for_the_end(recipe: Recipe) -> Iterator[Finding]:
    """The Trainer would upload whatever lies in the run's directory at every save."""
    if recipe.train.get("push_to_hub"):
        what = "train.push_to_hub uploads during training, and what is finished is pushed by export"
        fix = "write export.push_to_hub: your-name/the-model, and delete train.push_to_hub"
        yield Finding(("train.push_to_hub",), what, fix)


def _later(path: str, setting: str, line: str) -> Finding:
    return Finding((path,), f"{setting} comes in a later version", f"write {line}")


def _written_as(recipe: Recipe, name: str) -> str:
    """The path that a person used: an older name may have been renamed."""
    older = f"train.{name.replace('activation', 'gradient')}"
    path = f"train.{name}"
    is_renamed = (
        recipe.is_written(older)
        and recipe.where(older)[: -len(older)] == (recipe.where(path)[: -len(path)])
    )
    return older if is_renamed else path
