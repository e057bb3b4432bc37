"""Count what is really in memory after the model was built.

The recipe does not show this. Quantisation skips layers that are not linear, an adapter skips
modules that no target matches, and libraries cast weights silently. In all these cases the loss
still falls. So the census counts parameters and bytes by kind (quantised, frozen, trained), dtype
and device. It is printed and stored in the manifest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table

from lora_sft.errors import ModelError
from lora_sft.model.adapter import count_adapted_modules
from lora_sft.model.partitioning import count_elements
from lora_sft.model.quantization import count_weights, is_quantized_parameter


@dataclass(frozen=True)
class CensusRow:
    """The parameters of one kind, dtype and device: their number and their bytes."""

    kind: str
    dtype: str
    device: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Census:
    """The model's parameters by kind, dtype and device, and the adapted modules by name."""

    rows: tuple[CensusRow, ...]
    adapted_modules: dict[str, int] = field(default_factory=dict)

    @property
    def trained_parameters(self) -> int:
        return sum(row.parameters for row in self.rows if row.kind == "trained")

    @property
    def total_parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the census as plain data, for the manifest."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "adapted_modules": self.adapted_modules,
            "trained_parameters": self.trained_parameters,
            "total_parameters": self.total_parameters,
        }

    def to_table(self) -> Table:
        """Return the census as a table for people."""
        table = Table(title="model census", title_justify="left")
        for heading in ("kind", "dtype", "device"):
            table.add_column(heading)
        for heading in ("tensors", "parameters", "MiB"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            cells = (f"{row.tensors}", f"{row.parameters:,}", f"{row.bytes / 2**20:,.2f}")
            table.add_row(row.kind, row.dtype, row.device, *cells)
        adapted = ", ".join(f"{name} x{count}" for name, count in self.adapted_modules.items())
        share = 100 * self.trained_parameters / max(self.total_parameters, 1)
        table.caption = f"trained {share:.2f} % of all; adapted: {adapted or 'nothing'}"
        return table


def take_census(model: torch.nn.Module) -> Census:
    """Count every parameter of `model` once. Tied weights are one parameter.

    Raises: ModelError if no parameter would be trained.
    """
    groups: dict[tuple[str, str, str], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        key = (_kind(parameter), _dtype_name(parameter), str(parameter.device))
        groups.setdefault(key, []).append(parameter)
    rows = tuple(
        CensusRow(*key, len(group), sum(map(count_weights, group)), sum(map(_bytes, group)))
        for key, group in sorted(groups.items())
    )
    census = Census(rows, dict(count_adapted_modules(model)))
    if census.trained_parameters == 0:
        raise ModelError(
            "no parameter of the model would be trained",
            "adapter",
            "write adapter.target_modules: all-linear, or names that match modules",
        )
    return census


def check_trained_dtype(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Check that every trained weight has the dtype that the optimizer needs.

    Raises: ModelError if a trained weight has another dtype.
    """
    strays = [
        f"{name} in {str(parameter.dtype).removeprefix('torch.')}"
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dtype != dtype
    ]
    if strays:
        raise ModelError(
            f"{len(strays)} trained weights are not {str(dtype).removeprefix('torch.')} "
            f"(first: {strays[0]})",
            "adapter",
            "a library changed their dtype; please report this with the recipe and `pip freeze`",
        )


def _kind(parameter: torch.nn.Parameter) -> str:
    if parameter.requires_grad:
        return "trained"
    return "quantised" if is_quantized_parameter(parameter) else "frozen"


def _dtype_name(parameter: torch.nn.Parameter) -> str:
    state = getattr(parameter, "quant_state", None)
    name = str(parameter.dtype).removeprefix("torch.")
    return f"{state.quant_type} in {name}" if state is not None else name


def _bytes(parameter: torch.nn.Parameter) -> int:
    """Return the bytes of a parameter, with its quantisation constants."""
    stored = count_elements(parameter) * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return stored
    constants = [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return stored + sum(tensor.numel() * tensor.element_size() for tensor in constants)
