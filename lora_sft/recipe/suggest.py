"""Find the setting that a person probably meant by an unknown key."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Any

from lora_sft.recipe import schema
from lora_sft.recipe.fields import Field, check_value, suggest_value
from lora_sft.recipe.library_fields import read_snapshot
from lora_sft.recipe.other_names import Advice, find_advice, write_line
from lora_sft.recipe.sections.data import DatasetSection, SplitSection
from lora_sft.recipe.sections.settings import section_fields

LIBRARY_SECTIONS = {
    "train": ("SFTConfig", "trl"),
    "adapter": ("LoraConfig", "peft"),
    "quantization": ("BitsAndBytesConfig", "transformers"),
}
MAX_LISTED_NAMES = 14


def advise_on_unknown(section: str, name: str, value: Any, known: Iterable[str]) -> Advice:
    """Return the fault and the fix for `name`, which is not a setting of `section`.

    Args:
        section: The dotted path of the section.
        name: The unknown key.
        value: Its value, which the fix repeats if the right setting accepts it.
        known: The settings of the section.
    """
    group = _without_indices(section)
    advice = find_advice(group, name, value)
    if advice is not None:
        return advice
    what = f'unknown key "{name}"' + (f" in {section}" if section else "")
    fix = (
        _find_nearest(section, name, value, known)
        or _find_elsewhere(name, value)
        or _list_known(group, known)
    )
    return Advice(what, fix)


@cache
def all_settings() -> dict[str, Field]:
    """Return every setting of a recipe by its dotted path.

    A list of data sets is represented by its first entry.
    """
    groups = {
        **{name: section_fields(section) for name, section in schema.SECTIONS.items()},
        "train": schema.train_fields(),
        "adapter": schema.adapter_fields(),
        "quantization": schema.quantization_fields(),
        "data.datasets.0": section_fields(DatasetSection),
        "data.validation": section_fields(SplitSection),
    }
    return {
        f"{group}.{name}": field
        for group, fields in groups.items()
        for name, field in fields.items()
    }


def _find_nearest(section: str, name: str, value: Any, known: Iterable[str]) -> str | None:
    match = _closest(name, known, cutoff=0.75)
    if match is None:
        return None
    return f'did you mean "{match}"? {_line(f"{section}.{match}" if section else match, value)}'


def _find_elsewhere(name: str, value: Any) -> str | None:
    """Return a fix if another section has this name or a very similar one."""
    if name in all_settings():
        section, _, bare = name.rpartition(".")
        return f"a key cannot contain dots: under {section}, {_line(bare, value)}"
    by_bare_name: dict[str, str] = {name: name for name in schema.TOP_LEVEL}
    for dotted in all_settings():
        by_bare_name.setdefault(dotted.rpartition(".")[2], dotted)
    match = name if name in by_bare_name else _closest(name, by_bare_name, cutoff=0.8)
    if match is None:
        return None
    home = by_bare_name[match]
    section = home.rpartition(".")[0] or "the top level"
    return f'"{match}" belongs under {section}: {_line(home, value)}'


def _list_known(group: str, known: Iterable[str]) -> str:
    names = list(known)
    if len(names) <= MAX_LISTED_NAMES:
        return f"the settings here are: {', '.join(names)}"
    if group in LIBRARY_SECTIONS:
        config, library = LIBRARY_SECTIONS[group]
        version = read_snapshot()["versions"][library]
        return (
            f"{group} has the settings of {config} ({library} {version}): "
            "see `lora-sft show --schema`"
        )
    return "see `lora-sft show --schema`"


def _closest(name: str, names: Iterable[str], cutoff: float) -> str | None:
    return next(iter(get_close_matches(name.lower(), list(names), n=1, cutoff=cutoff)), None)


def _line(dotted: str, value: Any) -> str:
    """Return the line to write, with the person's value if the setting accepts it."""
    if isinstance(value, dict):
        return f"write {dotted}: ..."  # a whole section is too long for a message
    field = all_settings().get(dotted)
    fits = field is None or check_value(value, field) is None
    return write_line(dotted, value if fits or field is None else suggest_value(value, field))


def _without_indices(section: str) -> str:
    return ".".join(part for part in section.split(".") if not part.isdigit())
