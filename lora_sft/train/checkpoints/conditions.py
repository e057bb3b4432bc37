"""Compare the conditions of two starts of a run that may differ: libraries, machine, processes.

They change numbers by rounding at most. So a difference is not refused, but said with both values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lora_sft.model.base_model import find_device


def read_machine() -> dict[str, Any]:
    """Return the kind of device of this process, and its number of threads."""
    device = find_device()
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": kind, "threads": torch.get_num_threads()}


def list_other_conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one text for each condition that differs between two manifests of a run.

    A condition that an earlier version of lora-sft did not record is left out.
    """
    found = []
    for section in ("versions", "machine"):
        old, new = before.get(section), now[section]
        if old is not None:
            names = sorted(old.keys() | new.keys())
            found += [_describe(name, old.get(name), new.get(name)) for name in names]
    if "world_size" in before:
        found.append(_describe("processes", before["world_size"], now["world_size"]))
    return [text for text in found if text]


def _describe(name: str, old: Any, new: Any) -> str:
    return "" if old == new else f"{name} {_show(old)} -> {_show(new)}"


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
