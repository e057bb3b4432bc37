"""The DeepSpeed settings that `train.deepspeed` names: a shipped policy, a file, or a mapping.

Only JSON is read here; DeepSpeed itself has its door in `train.zero`. A policy says how a model is
spread over the processes. What decides the numbers (batch, rate, clipping, precision) belongs to
the recipe, so that one line moves a run to more GPUs and nothing else changes.
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
# DeepSpeed's words for what the recipe owns, and the recipe's.
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
    """DeepSpeed's settings as written, and what to call the place they were written in."""

    settings: dict[str, Any]
    source: str

    @property
    def zero_stage(self) -> int:
        section = self.settings.get("zero_optimization")
        stage = section.get("stage", 0) if isinstance(section, dict) else 0
        return stage if isinstance(stage, int) else 0


def read_policy(recipe: Recipe) -> Policy | None:
    """The policy of a recipe, or None where it trains without DeepSpeed.

    Raises: ValueError where the file holds no JSON object; the rules show it as a fault.
    """
    written = recipe.train.get("deepspeed")
    if written is None:
        return None
    if isinstance(written, dict):
        return Policy(written, "train.deepspeed")
    path = Path(recipe.deepspeed_location or written)
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return Policy(settings, path.name)


def list_contradictions(policy: Policy, recipe: Recipe) -> Iterator[tuple[str, str, Any]]:
    """Settings of the policy that the recipe owns: (name there, path here, value there).

    A number that says what the recipe says is let be; a section that is switched off too.
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
