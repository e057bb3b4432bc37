"""Count the launches, the memory traffic and the kept activations of a training step on a CPU.

On a GPU the time of a LoRA step depends as much on element-wise traffic and on launches as on
matrix products. Both can be counted on a CPU, from the operators that reach PyTorch's dispatcher.
Two things are not seen: fused kernels that exist only on a GPU, and the work inside one operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATRIX_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "addmm_", "mv"})
# Operators that make a tensor without writing to it.
ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
# Operators whose result the CPU needs: on a GPU the CPU would wait for it.
SYNCHRONISATIONS = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"})


class StepTraffic(TorchDispatchMode):
    """A context manager that counts the operators that PyTorch dispatches inside it.

    Attributes:
        launches: The number of operators that do work. Views and allocations do not count.
        element_wise_bytes: The bytes that operators read and write, without matrix products and
            attention.
        synchronisations: How often the CPU would have to wait for a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.element_wise_bytes = 0
        self.synchronisations = 0
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name in SYNCHRONISATIONS:
            self.synchronisations += 1
        given = _find_tensors((args, kwargs))
        made = _find_tensors(out)
        if name not in ALLOCATIONS and made and not _is_view(func, given, made):
            self.launches += 1
            self.operators[name] += 1
            if name not in MATRIX_PRODUCTS and "scaled_dot_product" not in name:
                self.element_wise_bytes += sum(map(_count_bytes, [*given, *made]))
        return out


def _find_tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_view(func: Any, given: Iterable[torch.Tensor], made: Iterable[torch.Tensor]) -> bool:
    """Return whether an operator only gives its input's memory another shape."""
    if func._schema.is_mutable:
        return False
    storages = {tensor.untyped_storage().data_ptr() for tensor in given}
    return all(tensor.untyped_storage().data_ptr() in storages for tensor in made)


def _count_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that one read of the tensor moves: an expanded tensor has less memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class CountedStep:
    """An observer of a run that counts the traffic of one optimizer step."""

    def __init__(self, step: int, model: Any) -> None:
        self.step = step
        self.traffic = StepTraffic()
        self.saved: dict[int, int] = {}
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._entered = ExitStack()

    @property
    def saved_bytes(self) -> int:
        """The bytes that the forward pass keeps for the backward pass, without parameters."""
        return sum(self.saved.values())

    def start_step(self, step: int) -> None:
        """Begin to count if this is the wanted step."""
        if step == self.step:
            hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
            self._entered.enter_context(hooks)
            self._entered.enter_context(self.traffic)

    def end_step(self, step: int) -> None:
        """Stop counting if this is the wanted step."""
        if step == self.step:
            self._entered.close()

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self.saved[storage.data_ptr()] = storage.nbytes()
        return tensor
