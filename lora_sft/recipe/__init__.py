"""Read, compose, check and resolve recipes, without importing any heavy library."""

from lora_sft.recipe.json_schema import recipe_json_schema
from lora_sft.recipe.reader import read_recipe
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.schema import (
    AdapterSection,
    EvaluateSection,
    ExportSection,
    ModelSection,
    TokenizerSection,
)
from lora_sft.recipe.sections.data import DataSection, DatasetSection, SplitSection
from lora_sft.recipe.sections.task import PromptSection, TaskSection

__all__ = [
    "AdapterSection",
    "DataSection",
    "DatasetSection",
    "EvaluateSection",
    "ExportSection",
    "ModelSection",
    "PromptSection",
    "Recipe",
    "SplitSection",
    "TaskSection",
    "TokenizerSection",
    "read_recipe",
    "recipe_json_schema",
]
