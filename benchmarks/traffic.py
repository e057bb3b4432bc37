"""Count what a training step launches, moves and keeps: what a GPU pays for, read without one.

A step of LoRA is bound by element-wise traffic and launches as much as by matrix products, and
both can be counted on a CPU from the operators that reach the dispatcher. What differs from a GPU:
fused kernels that only exist there, and what their libraries do inside one operator.
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
# Operators that make a tensor without writing it, or read a number back (a synchronisation).
ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
SYNCHRONISATIONS = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"})


class StepTraffic(TorchDispatchMode):
    """Counts of everything dispatched while it is entered.

    `launches`: operators that do work (views and allocations are none).
    `element_wise_bytes`: bytes read and written by operators that are neither matrix products nor
    attention.
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
    """Whether an operator only looks at memory that was there, in another shape."""
    if func._schema.is_mutable:
        return False
    storages = {tensor.untyped_storage().data_ptr() for tensor in given}
    return all(tensor.untyped_storage().data_ptr() in storages for tensor in made)


def _count_bytes(tensor: torch.Tensor) -> int:
    """Bytes that reading the tensor once moves; an expanded one is read from its smaller memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class CountedStep:
    """An observer of a run that counts one of its optimizer steps.

    `saved_bytes` are what the forward pass keeps for the backward pass, parameters not counted.
    """

    def __init__(self, step: int, model: Any) -> None:
        self.step = step
        self.traffic = StepTraffic()
        self.saved: dict[int, int] = {}
        self._parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._entered = ExitStack()

    @property
    def saved_bytes(self) -> int:
        return sum(self.saved.values())

    def start_step(self, step: int) -> None:
        """Begin to count at the wanted step."""
        if step == self.step:
            hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
            self._entered.enter_context(hooks)
            self._entered.enter_context(self.traffic)

    def end_step(self, step: int) -> None:
        """Stop at its end."""
        if step == self.step:
            self._entered.close()

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self.saved[storage.data_ptr()] = storage.nbytes()
        return tensor
