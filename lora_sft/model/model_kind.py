"""Choose the class of a model for transformers, and its task type for PEFT.

Every model is loaded through this file: for training, merging, serving and verification. So a new
kind of model needs only one new entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class ModelKind:
    """One kind of model.

    Attributes:
        name: The name in messages.
        auto_class: The class of transformers that builds and loads the model.
        peft_task_type: PEFT's `task_type`, which decides how its wrapper runs a batch.
    """

    name: str
    auto_class: Any
    peft_task_type: str


CAUSAL_LM = ModelKind("causal language model", AutoModelForCausalLM, "CAUSAL_LM")


def find_model_kind() -> ModelKind:
    """Return the kind of the model that is trained. Chats are trained only with causal models."""
    return CAUSAL_LM
