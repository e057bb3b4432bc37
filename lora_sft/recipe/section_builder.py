"""Fill a section of the recipe from what was written, and say what does not fit.

A value that does not fit is left out and its path tainted, so that the rest of the recipe is
still checked in the same go. Nothing is converted: text that looks like a number is a fault
whose fix is the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.fields import (
    Field,
    Section,
    check_value,
    placeholder_of,
    suggest_value,
)
from lora_sft.recipe.locations import describe_missing, locate
from lora_sft.recipe.other_names import write_line
from lora_sft.recipe.schema import section_fields
from lora_sft.recipe.written import Written, join

SectionT = TypeVar("SectionT", bound=Section)


class SectionBuilder:
    """Builds sections and collects what is wrong with them."""

    def __init__(self, faults: FaultList) -> None:
        self._faults = faults

    def build_section(self, kind: type[SectionT], written: Written, dotted: str) -> SectionT:
        """One of our sections. A required setting without a value gets a stand-in."""
        fields = section_fields(kind)
        values = self.build_settings(fields, written, dotted)
        for name, field in fields.items():
            if field.is_required and name not in values:
                path = join(dotted, name)
                self._faults.add_missing(path, written.origin, write_line(path, field.example))
                values[name] = placeholder_of(field)
        return kind(**values)

    def build_settings(
        self, fields: Mapping[str, Field], written: Written, dotted: str
    ) -> dict[str, Any]:
        """Only the settings that were written and fit, with the places of their paths."""
        values: dict[str, Any] = {}
        if written.value is None:
            return values
        if not isinstance(written.value, dict):
            self._refuse_type(written, dotted, fields)
            return values
        for name, child in written.value.items():
            path = join(dotted, name)
            if name not in fields:
                self.refuse_key(dotted, name, child, fields)
            elif not self._faults.is_tainted(path):
                self._build_setting(values, name, fields[name], child, path)
        return values

    def refuse_key(self, section: str, name: str, child: Written, known: Mapping[str, Any]) -> None:
        """Record an unknown key. The setting that its fix names is then not missing as well."""
        from lora_sft.recipe.suggest import advise_on_unknown  # only once something is wrong

        path = join(section, name)
        if self._faults.is_tainted(path):
            return
        advice = advise_on_unknown(section, name, child.plain(), known)
        self._faults.add(advice.what, child.origin, path, advice.fix)
        if advice.target:
            self._faults.taint(advice.target)

    def _build_setting(
        self, values: dict[str, Any], name: str, field: Field, child: Written, path: str
    ) -> None:
        holds_list = "array" in field.types
        if field.section and holds_list and isinstance(child.value, list):
            values[name] = self._build_items(field.section, child.value, path)
        elif field.section and not holds_list and isinstance(child.value, dict):
            values[name] = self.build_section(field.section, child, path)
        elif self._fits(field, child, path):
            values[name] = child.plain()
            if field.path_kind and child.value is not None:
                values[field.located_as] = self._locate(field, child, path)

    def _build_items(self, kind: type[SectionT], items: list[Written], path: str) -> list[SectionT]:
        built = []
        for index, item in enumerate(items):
            if isinstance(item.value, dict):
                built.append(self.build_section(kind, item, join(path, index)))
            elif not self._faults.is_tainted(join(path, index)):
                self._refuse_type(item, join(path, index), section_fields(kind))
        return built

    def _fits(self, field: Field, child: Written, path: str) -> bool:
        value = child.plain()
        problem = check_value(value, field)
        if problem is None:
            return True
        self._faults.add(f"{path} {problem}", child.origin, path, _fix_for(value, field, path))
        return False

    def _refuse_type(self, written: Written, dotted: str, fields: Mapping[str, Field]) -> None:
        """A single value or list stands where a mapping of settings belongs."""
        what = f"{dotted} is a mapping of settings, each on its own line"
        fix = write_line(dotted, _as_mapping(written.plain(), fields))
        self._faults.add(what, written.origin, dotted, fix)

    def _locate(self, field: Field, child: Written, path: str) -> str:
        place = locate(child.value, child.origin.folder, field.path_kind)
        if place is not None:
            return place
        what, fix = describe_missing(child.value, child.origin, field.path_kind)
        self._faults.add(what, child.origin, path, fix)
        return str(child.value)


def _fix_for(value: Any, field: Field, path: str) -> str:
    """The line to write instead of a value that does not fit."""
    if field.section:
        return write_line(path, _as_section(value, field, field.section))
    if field.python_class and field.types == ("null",):
        return "delete the line"
    return write_line(path, suggest_value(value, field))


def _as_section(value: Any, field: Field, section: type[Section]) -> Any:
    """`train.jsonl` as `[{path: train.jsonl}]`, where that is what the setting holds."""
    entry = value if isinstance(value, dict) else _as_mapping(value, section_fields(section))
    return [entry] if "array" in field.types else entry


def _as_mapping(value: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The mapping whose first setting is `value`, if that fits, with what else is required."""
    mapping = {name: field.example for name, field in fields.items() if field.is_required}
    name, first = next(iter(fields.items()))
    if first.section and isinstance(value, str):
        mapping[name] = _as_section(value, first, first.section)
    elif isinstance(value, (str, int, float)) and check_value(value, first) is None:
        mapping[name] = value
    return mapping
