"""Check the file of a saved adapter. Only its header and its B matrices are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def find_fault_in_saved_adapter(
    path: Path, shapes: Mapping[str, torch.Size], *, has_stepped: bool
) -> str:
    """Return what is wrong with an adapter on disk, or "" if it is the one in memory.

    With partitioned parameters, libraries may save tensors without elements, or no tensors, and
    report nothing. The file's header shows this.

    Args:
        path: The file of the adapter.
        shapes: The name and shape of each tensor of the adapter in memory.
        has_stepped: The optimizer has made a step, so some B matrix must not be zero.
    """
    if not path.exists():
        return f"{path.name} was not written"
    with safe_open(str(path), framework="pt") as file:
        found = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        learned_nothing = has_learned_nothing(file)
    missing, strange = sorted(shapes.keys() - found), sorted(found.keys() - shapes)
    if missing:
        return f"{len(missing)} tensors are missing (first: {missing[0]})"
    if strange:
        return f"{len(strange)} tensors belong to no module (first: {strange[0]})"
    for name, shape in shapes.items():
        if found[name] != shape:
            return f"{name} has the shape {list(found[name])} instead of {list(shape)}"
    return "every lora_B is zero: nothing was learned" if has_stepped and learned_nothing else ""


def has_learned_nothing(file: Any) -> bool:
    """Return whether every B matrix of an opened adapter file is zero, as before training.

    Such an adapter does not change the base. Returns False for a file without B matrices.
    """
    names = [name for name in file.keys() if ".lora_B." in name or "lora_embedding_B" in name]  # noqa: SIM118
    return bool(names) and not any(torch.any(file.get_tensor(name)) for name in names)
