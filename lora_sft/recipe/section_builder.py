"""Build a section of the recipe from its written values, and report the invalid ones.

An invalid value is left out and its path is marked as faulty. So the rest of the recipe can still
be checked. Values are never converted: a text that looks like a number is a fault, and its fix is
the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.fields import (
    Field,
    Section,
    check_value,
    make_placeholder,
    suggest_value,
)
from lora_sft.recipe.locations import describe_missing, locate
from lora_sft.recipe.other_names import write_line
from lora_sft.recipe.sections.settings import section_fields
from lora_sft.recipe.written import Written, join

SEE_SCHEMA = "see `lora-sft show --schema`"  # the fix where none is searched

SectionT = TypeVar("SectionT", bound=Section)


class SectionBuilder:
    """Builds sections and collects their faults."""

    def __init__(self, faults: FaultList) -> None:
        self._faults = faults

    def build_section(self, kind: type[SectionT], written: Written, dotted: str) -> SectionT:
        """Return one of our sections.

        A missing required setting is recorded, and a placeholder takes its place.
        """
        fields = section_fields(kind)
        values = self.build_settings(fields, written, dotted)
        for name, field in fields.items():
            if field.is_required and name not in values:
                path = join(dotted, name)
                self._faults.add_missing(path, written.origin, write_line(path, field.example))
                values[name] = make_placeholder(field)
        return kind(**values)

    def build_settings(
        self, fields: Mapping[str, Field], written: Written, dotted: str
    ) -> dict[str, Any]:
        """Return the valid settings that were written, with the locations of their paths."""
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
            elif not self._faults.is_faulty(path):
                self._build_setting(values, name, fields[name], child, path)
        return values

    def refuse_key(self, section: str, name: str, child: Written, known: Mapping[str, Any]) -> None:
        """Record an unknown key.

        If its fix names a required setting, this setting is not reported as missing.
        """
        from lora_sft.recipe.suggest import advise_on_unknown  # imported late: only errors need it

        path = join(section, name)
        if self._faults.is_faulty(path):
            return
        if self._faults.is_full:
            self._faults.add(f'unknown key "{name}"', child.origin, path, SEE_SCHEMA)
            return
        advice = advise_on_unknown(section, name, child.plain(), known)
        self._faults.add(advice.what, child.origin, path, advice.fix)
        if advice.target:
            self._faults.mark_faulty(advice.target)

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
            elif not self._faults.is_faulty(join(path, index)):
                self._refuse_type(item, join(path, index), section_fields(kind))
        return built

    def _fits(self, field: Field, child: Written, path: str) -> bool:
        value = child.plain()
        problem = check_value(value, field)
        if problem is None:
            return True
        fix = SEE_SCHEMA if self._faults.is_full else _fix_for(value, field, path)
        self._faults.add(f"{path} {problem}", child.origin, path, fix)
        return False

    def _refuse_type(self, written: Written, dotted: str, fields: Mapping[str, Field]) -> None:
        """Record a single value or a list in the place of a mapping of settings."""
        what = f"{dotted} must be a mapping of settings, each on its own line"
        fix = write_line(dotted, _as_mapping(written.plain(), fields))
        self._faults.add(what, written.origin, dotted, fix)

    def _locate(self, field: Field, child: Written, path: str) -> str:
        place = locate(child.value, child.origin.folder, field.path_kind)
        if place is not None:
            return place
        if self._faults.is_full:
            what = f'{path} leads nowhere: "{child.value}"'
            self._faults.add(what, child.origin, path, "correct the path")
            return str(child.value)
        what, fix = describe_missing(child.value, child.origin, field.path_kind)
        self._faults.add(what, child.origin, path, fix)
        return str(child.value)


def _fix_for(value: Any, field: Field, path: str) -> str:
    """Return the line to write in place of an invalid value."""
    if field.section:
        return write_line(path, _as_section(value, field, field.section))
    if field.python_class and field.types == ("null",):
        return "delete the line"
    return write_line(path, suggest_value(value, field))


def _as_section(value: Any, field: Field, section: type[Section]) -> Any:
    """Return a value in the form of the section: `train.jsonl` becomes `[{path: train.jsonl}]`."""
    entry = value if isinstance(value, dict) else _as_mapping(value, section_fields(section))
    return [entry] if "array" in field.types else entry


def _as_mapping(value: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return a mapping with the required settings, and `value` as the first setting if it fits."""
    mapping = {name: field.example for name, field in fields.items() if field.is_required}
    name, first = next(iter(fields.items()))
    if first.section and isinstance(value, str):
        mapping[name] = _as_section(value, first, first.section)
    elif isinstance(value, (str, int, float)) and check_value(value, first) is None:
        mapping[name] = value
    return mapping
