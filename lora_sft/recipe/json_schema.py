"""Describe the recipe as a JSON Schema, which editors use to complete and check a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_sft.recipe.fields import REQUIRED, Field, Section
from lora_sft.recipe.schema import (
    QUANTIZATION_PRESETS,
    SECTIONS,
    adapter_fields,
    quantization_fields,
    train_fields,
)
from lora_sft.recipe.sections.settings import section_fields
from lora_sft.recipe.sections.task import TaskSection

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file."""
    sections = {name: _describe_section(kind) for name, kind in SECTIONS.items()}
    model = {"anyOf": [{"type": "string"}, sections.pop("model")]}
    kinds = {"enum": list(section_fields(TaskSection)["kind"].choices)}
    task = {"anyOf": [kinds, sections.pop("task")]}
    presets = {"enum": [*QUANTIZATION_PRESETS, None]}
    quantization = {"anyOf": [presets, _describe_settings(quantization_fields())]}
    return {
        "$schema": DIALECT,
        "title": "lora-sft recipe",
        "type": "object",
        "additionalProperties": False,
        # A recipe that extends another may inherit the required settings.
        "anyOf": [{"required": ["extends"]}, {"required": ["model", "data"]}],
        "properties": {
            "extends": {
                "type": ["string", "null"],
                "description": "A recipe to start from, relative to this file.",
            },
            "model": model,
            "task": task,
            **sections,
            "quantization": quantization,
            "adapter": _describe_settings(adapter_fields()),
            "train": _describe_settings(train_fields()),
            "output_dir": {
                "type": "string",
                "description": "The run's folder, relative to the current directory.",
            },
        },
    }


def _describe_section(kind: type[Section]) -> dict[str, Any]:
    described = _describe_settings(section_fields(kind))
    described["description"] = (kind.__doc__ or "").splitlines()[0]
    return described


def _describe_settings(fields: Mapping[str, Field]) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {name: _describe_field(field) for name, field in fields.items()},
    }


def _describe_field(field: Field) -> dict[str, Any]:
    described: dict[str, Any] = {"type": list(field.types)}
    if field.choices and not any("[" in choice for choice in field.choices):
        described = _with_choices(field)
    if field.section is not None and "array" in field.types:
        described["items"] = _describe_section(field.section)
    elif field.section is not None:
        others = [name for name in field.types if name != "object"]
        described = {"anyOf": [{"type": others}, _describe_section(field.section)]}
    bounds = {
        "exclusiveMinimum": field.above,
        "minimum": field.at_least,
        "exclusiveMaximum": field.below,
        "description": field.help or None,
    }
    described |= {name: bound for name, bound in bounds.items() if bound is not None}
    if field.default is not REQUIRED:
        described["default"] = field.default
    return described


def _with_choices(field: Field) -> dict[str, Any]:
    """Return the schema of a field with choices, which may also accept other types than text."""
    others = [name for name in field.types if name != "string"]
    words = {"enum": list(field.choices)}
    return {"anyOf": [words, {"type": others}]} if others else dict(words)
