"""Everything that training needs, known before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_sft.model.base_model import CausalModel
from lora_sft.recipe import Recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train.training_rows import TrainingRows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingJob:
    """One training run, ready to begin.

    Attributes:
        recipe: The resolved recipe.
        run: The directory that the run writes.
        arguments: TRL's `SFTConfig`, made from the recipe and the batch plan.
        model: The base model with the adapter.
        tokenizer: Gives the padding token of batches. It is saved beside the adapter.
        rows: The training rows, packed or not.
        validation: The held-out rows, or None.
        origin: The facts about the base model in `lora_sft.json`, saved with every checkpoint.
        checkpoint: The checkpoint to continue from, or None to begin at step 0.
        trust_checkpoint: Whether to load DeepSpeed's states that this user did not sign.
    """

    recipe: Recipe
    run: RunDirectory
    arguments: Any
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    rows: TrainingRows
    validation: Dataset | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    trust_checkpoint: bool = False
