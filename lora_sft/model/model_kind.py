"""The one door that chooses the class of a model: how transformers loads it, and PEFT's task type.

Every model is loaded through here (trained, merged, served, verified), so that a new kind of model
is one entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class ModelKind:
    """One kind of model.

    Attributes:
        name: What messages call it.
        auto_class: transformers' class that builds and loads it.
        peft_task_type: PEFT's `task_type`, which decides how its wrapper forwards a batch.
    """

    name: str
    auto_class: Any
    peft_task_type: str


CAUSAL_LM = ModelKind("causal language model", AutoModelForCausalLM, "CAUSAL_LM")


def find_model_kind() -> ModelKind:
    """Return the kind of the model that is trained. Chats are learned by causal models alone."""
    return CAUSAL_LM
