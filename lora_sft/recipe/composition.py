"""Compose one tree from a recipe, the recipes that it extends, and the command-line overrides.

Mappings are merged setting by setting. Lists and single values replace the parent's. Null replaces
too: if a child sets a section to null, the parent's section has no effect.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.locations import find_similar, make_absolute
from lora_sft.recipe.schema import QUANTIZATION_PRESETS, TOP_LEVEL
from lora_sft.recipe.shipped import expand_prefix
from lora_sft.recipe.written import COMMAND_LINE, Origin, Written, join, wrap
from lora_sft.recipe.yaml_reader import read_yaml_file, read_yaml_value


def compose(path: Path, overrides: Sequence[str], faults: FaultList) -> Written | None:
    """Return the whole recipe as one tree, or None if one of its files cannot be read at all."""
    if not path.is_file():
        _refuse_missing(str(path), Origin(str(path), None, Path.cwd()), faults)
        return None
    root = _read_with_parents(path, str(path), (), faults)
    if root is None:
        return None
    for override in overrides:
        root = _apply_override(root, override, faults)
    return root


def expand_short_form(section: str, written: Written) -> Written:
    """Return the mapping that `model: NAME` or a quantization preset stands for."""
    if not isinstance(written.value, str):
        return written
    if section == "model":
        return wrap({"model_name_or_path": written.value}, written.origin)
    if section == "quantization" and written.value in QUANTIZATION_PRESETS:
        return wrap(QUANTIZATION_PRESETS[written.value], written.origin)
    return written


def _read_with_parents(
    path: Path, label: str, children: tuple[Path, ...], faults: FaultList
) -> Written | None:
    read = _read_parent_file if children else read_yaml_file
    root = read(path, label, faults)
    if root is None or "extends" not in root.value:
        return root
    settings = dict(root.value)
    extends = settings.pop("extends")
    own = Written(settings, root.origin)
    if extends.value is None:
        return own
    parent = _read_parent(extends, path, label, children, faults)
    return None if parent is None else _merge(parent, own, "")


def _read_parent(
    extends: Written, path: Path, label: str, children: tuple[Path, ...], faults: FaultList
) -> Written | None:
    family = (*children, path.resolve())
    if not isinstance(extends.value, str):
        faults.add(
            "extends must be the path of one recipe",
            extends.origin,
            "extends",
            "write extends: ../defaults.yaml",
        )
        return None
    parent = path.parent / Path(expand_prefix(extends.value)).expanduser()
    if parent.resolve() in family:
        names = " -> ".join(member.name for member in (*family, parent))
        faults.add(
            f"the recipes extend each other in a circle: {names}",
            extends.origin,
            "extends",
            "delete one of the `extends` lines",
        )
        return None
    if not parent.is_file():
        _refuse_missing(extends.value, extends.origin, faults, "extends")
        return None
    parent_label = os.path.normpath(Path(label).parent / extends.value)
    return _read_with_parents(parent, parent_label, family, faults)


def _refuse_missing(text: str, origin: Origin, faults: FaultList, dotted: str = "") -> None:
    near = find_similar(text, origin.folder)
    place = make_absolute(text, origin.folder)
    fix = f"did you mean {near}?" if near else f"create {place} or correct the path"
    faults.add(f'no such recipe: "{text}"', origin, dotted, fix)


def _read_parent_file(path: Path, label: str, faults: FaultList) -> Written | None:
    """Read a recipe that another one extends.

    A recipe from elsewhere may name any file. So an error shows only a place in it, and nothing of
    its content, if it is not a recipe.
    """
    own_faults = FaultList()
    root = read_yaml_file(path, label, own_faults)
    place = own_faults.first_origin
    if root is not None and place is None and not _is_recipe(root):
        place = root.origin
    if place is None:
        return root
    what = "the file that `extends` names cannot be read as a recipe"
    faults.add(what, place, fix=f"correct it; `lora-sft show {label}` shows what is wrong")
    return None


def _is_recipe(root: Written) -> bool:
    """Return whether most keys of a file are sections of a recipe."""
    num_known = sum(name in TOP_LEVEL for name in root.value)
    return num_known > 0 and num_known * 2 >= len(root.value)


def _merge(parent: Written, child: Written, section: str) -> Written:
    """Return `parent` with the values of `child` on top.

    `model: NAME` replaces only the model's name and keeps the parent's other settings, such as its
    dtype. A quantization preset replaces the whole section.
    """
    if section == "model" and isinstance(parent.value, dict):
        child = expand_short_form(section, child)
    if isinstance(child.value, dict):
        parent = expand_short_form(section, parent)
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    merged = dict(parent.value)
    for key, value in child.value.items():
        merged[key] = _merge(merged[key], value, join(section, key)) if key in merged else value
    return Written(merged, child.origin)


def _apply_override(root: Written, override: str, faults: FaultList) -> Written:
    dotted, equals, text = override.partition("=")
    origin = Origin(COMMAND_LINE, None, Path.cwd())
    if dotted == "extends":
        fix = "write extends into the recipe, or give the other recipe's settings as overrides"
        faults.add("extends cannot be set on the command line", origin, dotted, fix)
        return root
    if not equals or not all(dotted.split(".")):
        fix = "write it as section.field=value, for example train.learning_rate=1e-4"
        faults.add(f'"{override}" is not an override', origin, fix=fix)
        return root
    value = read_yaml_value(text, faults, dotted)
    if value is None:
        return root
    try:
        return _set(root, dotted.split("."), value, "")
    except _CannotSetError as problem:
        faults.add(str(problem), origin, dotted, problem.fix)
        return root


class _CannotSetError(Exception):
    """The path of an override leads through a value that has no settings inside."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


def _set(node: Written, names: list[str], value: Written, path: str) -> Written:
    """Return `node` with the value at the path `names` replaced. Missing sections are created."""
    if not names:
        return _merge(node, value, path) if isinstance(value.value, str) else value
    node = expand_short_form(path, node)
    name, rest = names[0], names[1:]
    inner = join(path, name)
    if isinstance(node.value, list):
        return _set_item(node, name, rest, value, path)
    if not isinstance(node.value, (dict, type(None))):
        raise _CannotSetError(
            f"{path} is a single value and has no settings inside", f"write {path}=..."
        )
    settings: dict[str, Any] = dict(node.value or {})
    present = settings.get(name) or Written([] if _is_first_item(rest) else None, value.origin)
    settings[name] = _set(present, rest, value, inner)
    return Written(settings, node.origin)


def _set_item(node: Written, name: str, rest: list[str], value: Written, path: str) -> Written:
    items = list(node.value)
    if not name.isdigit() or int(name) > len(items):
        raise _CannotSetError(
            f'{path} is a list of {len(items)} items and has no item "{name}"',
            f"items are counted from 0: write {path}.0",
        )
    index = int(name)
    present = items[index] if index < len(items) else Written(None, value.origin)
    items[index : index + 1] = [_set(present, rest, value, join(path, index))]
    return Written(items, node.origin)


def _is_first_item(rest: list[str]) -> bool:
    return bool(rest) and rest[0] == "0"
