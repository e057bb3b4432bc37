"""Build the model that is trained: base, quantisation and adapter."""

from __future__ import annotations

from lora_sft.log import make_console, say
from lora_sft.model.adapter import add_adapter
from lora_sft.model.base_model import (
    CausalModel,
    load_base_model,
)
from lora_sft.model.census import Census, take_census
from lora_sft.recipe import Recipe


def build_model(recipe: Recipe) -> tuple[CausalModel, Census]:
    """Return the model that is trained, and the census of its parameters."""
    base = load_base_model(
        recipe.model,
        quantization=recipe.quantization,
        where=recipe.where("model.model_name_or_path"),
    )
    if recipe.model.attn_implementation is None:
        say(f"attention: {base.config._attn_implementation} (the library's choice here)")
    model = add_adapter(base, recipe)
    census = take_census(model)
    make_console().print(census.to_table())
    return model, census
