"""Read the DeepSpeed settings of `train.deepspeed`: a shipped policy, a file, or a mapping.

A policy only says how the model is divided among the processes. The recipe owns batch size,
learning rate, clipping and precision. So one line in a recipe moves a run to more GPUs and changes
nothing else.

This file reads JSON only. `train.zero` is the only file that imports DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.schema import train_fields

AUTO = "auto"
# DeepSpeed's names of settings that the recipe owns, and the recipe's names.
OWNED_NUMBERS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
}
OWNED_SECTIONS = {
    "optimizer": "train.optim",
    "scheduler": "train.lr_scheduler_type",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
}


@dataclass(frozen=True)
class Policy:
    """The DeepSpeed settings of a recipe.

    Attributes:
        settings: The settings as written, with DeepSpeed's names.
        source: Where they are written, for messages: a file's name, or `train.deepspeed`.
    """

    settings: dict[str, Any]
    source: str

    @property
    def zero_stage(self) -> int:
        section = self.settings.get("zero_optimization")
        stage = section.get("stage", 0) if isinstance(section, dict) else 0
        return stage if isinstance(stage, int) else 0


def read_policy(recipe: Recipe) -> Policy | None:
    """Return the DeepSpeed policy of a recipe, or None if it trains without DeepSpeed.

    Raises: ValueError if the file is not a JSON object. The rules report it as a fault.
    """
    written = recipe.train.get("deepspeed")
    if written is None:
        return None
    if isinstance(written, dict):
        return Policy(written, "train.deepspeed")
    path = Path(recipe.deepspeed_location or written)
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return Policy(settings, path.name)


def list_contradictions(policy: Policy, recipe: Recipe) -> Iterator[tuple[str, str, Any]]:
    """Yield each setting of the policy that contradicts a setting of the recipe.

    Each item is the name in the policy, the path in the recipe, and the value in the policy. A
    number that equals the recipe's number is accepted, and so is a section that is switched off.
    """
    for name, path in OWNED_NUMBERS.items():
        value, field = policy.settings.get(name, AUTO), path.removeprefix("train.")
        if value not in (AUTO, recipe.train.get(field, _library_default(field))):
            yield name, path, value
    for name, path in OWNED_SECTIONS.items():
        value = policy.settings.get(name)
        if value is None or (isinstance(value, dict) and value.get("enabled") in (False, AUTO)):
            continue
        yield name, path, value


def _library_default(name: str) -> Any:
    field = train_fields().get(name)
    return field.default if field is not None else None
