"""How a section of the recipe is written: a dataclass whose fields are settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_sft.recipe.fields import REQUIRED, Field, Section, make_field


def setting(default: Any = REQUIRED, **details: Any) -> Any:
    """Return a dataclass field that is also a setting of the recipe.

    Args:
        default: The default value. Without it, the setting is required.
        details: Passed on to the setting's `Field`.
    """
    metadata = {"setting": {"default": default, **details}}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def location_field() -> Any:
    """Return a field for the resolved location of a path. A recipe cannot set it."""
    return dataclasses.field(default="", repr=False, compare=False)


def section_fields(section: type[Section]) -> dict[str, Field]:
    """Return the settings of one of our sections, by name."""
    if section not in _FIELDS_BY_SECTION:
        _FIELDS_BY_SECTION[section] = {
            field.name: make_field(field.type, **field.metadata["setting"])
            for field in dataclasses.fields(section)  # type: ignore[arg-type]
            if "setting" in field.metadata
        }
    return _FIELDS_BY_SECTION[section]


_FIELDS_BY_SECTION: dict[type[Section], dict[str, Field]] = {}


class RecipeSection(Section):
    """A section that this file defines.

    If Python code creates a section without a location, the location is the path as given.
    """

    def __post_init__(self) -> None:
        for name, field in section_fields(type(self)).items():
            if field.located_as and not getattr(self, field.located_as):
                object.__setattr__(self, field.located_as, getattr(self, name) or "")
