"""Do documents in one row see each other? Asked of the model itself, not of its name.

Packed documents stay apart only if every layer that mixes tokens respects their borders: each kind
of attention by its mask or its kernel, and state-space, linear-attention and convolution layers by
arguments that many of them take and ignore. Which do depends on the model, the attention, the
kernels that are installed and the library's version, so it is measured: change one of two packed
documents, and nothing that the model computes for the other may move; and each must have the loss
that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from lora_sft.model.base_model import CausalModel

# Token ids of documents, packed into one row -> the model's inputs, as training makes them.
MakeBatch: TypeAlias = Callable[[Sequence[Sequence[int]]], Mapping[str, Any]]

# With borders that hold, the other document enters no sum but as a zero, so that nothing changes at
# all. Where tokens share more than layers (experts' batches, scales of 8-bit activations), rounding
# moves too: how much is measured on the same documents in lines of their own.
LEAST_LEAK = 1e-5
TIMES_ROUNDING = 10
# Alone or packed, sums are made in another order.
LOSS_TOLERANCE, LOSS_TOLERANCE_16_BIT = 1e-3, 2e-2
PROBE_SEED = 0


@dataclass(frozen=True)
class Isolation:
    """What one document does to another in the same row, as relative changes.

    `leak`: the largest change of a token's logits when the other document changes; `rounding`: the
    same where the two are lines of a batch. `loss_change`: of a document's mean loss, packed
    instead of alone. `refusal`: why the model could not be asked at all.
    """

    leak: float = 0.0
    rounding: float = 0.0
    loss_change: float = 0.0
    loss_tolerance: float = LOSS_TOLERANCE
    refusal: str = ""

    @property
    def fault(self) -> str:
        """What is wrong, or nothing."""
        if self.refusal:
            return self.refusal
        if not self.leak <= max(LEAST_LEAK, TIMES_ROUNDING * self.rounding):  # NaN is a fault too
            return f"packed documents see each other (logits change by {self.leak:.2g})"
        if not self.loss_change <= self.loss_tolerance:
            return f"a packed document has another loss than alone (by {self.loss_change:.2g})"
        return ""


def measure_isolation(
    model: CausalModel,
    make_batch: MakeBatch,
    documents: tuple[Sequence[int], Sequence[int]],
    autocast: torch.dtype | None = None,
) -> Isolation:
    """Run two documents packed, each of them changed, in lines of their own, and each alone.

    The leak is looked for in training mode, whose code may be another than that of inference;
    equal seeds draw equal dropout. The losses are compared in inference mode, for a packed row
    and a lone document would draw dropout differently.
    """
    first, second = documents
    border = len(first)

    def run(*packed: Sequence[int], training: bool = True) -> torch.Tensor:
        num_tokens = sum(map(len, packed))  # what follows is padding
        return _compute_logits(model, make_batch(packed), training, autocast)[:num_tokens]

    try:
        together = run(first, second)
        first_changed, second_changed = run(_change(first), second), run(first, _change(second))
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        return Isolation(refusal=f"the model takes no positions of tokens ({error})")
    leaks = (
        _find_largest_change(together[border:], first_changed[border:]),
        _find_largest_change(together[:border], second_changed[:border]),
    )
    packed = run(first, second, training=False)
    changes = [
        _compare_losses(document, logits, run(document, training=False))
        for document, logits in ((first, packed[:border]), (second, packed[border:]))
    ]
    is_exact = (autocast or model.dtype) == torch.float32
    return Isolation(
        leak=max(leaks),
        rounding=_measure_rounding(model, first, second, autocast),
        loss_change=max(changes),
        loss_tolerance=LOSS_TOLERANCE if is_exact else LOSS_TOLERANCE_16_BIT,
    )


def _measure_rounding(
    model: CausalModel, first: Sequence[int], second: Sequence[int], autocast: torch.dtype | None
) -> float:
    """How much a line of a batch changes with the line beside it, which no layer can see."""
    length = min(len(first), len(second))
    line = list(second[:length])
    before, after = (
        _compute_logits(model, {"input_ids": torch.tensor([line, other])}, True, autocast)
        for other in (list(first[:length]), _change(first[:length]))
    )
    return _find_largest_change(before, after)


def _change(ids: Sequence[int]) -> list[int]:
    """Another document of the same length, every token of it different and known to the model."""
    return [token - 1 if token else 1 for token in ids]


def _compute_logits(
    model: CausalModel, batch: Mapping[str, Any], training: bool, autocast: torch.dtype | None
) -> torch.Tensor:
    """The logits [T, V] of a batch's first row, in float32."""
    device = model.get_input_embeddings().weight.device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    with _as_in(model, training), torch.autocast(device.type, autocast, autocast is not None):
        return model(**inputs, use_cache=False).logits[0].float()


@contextmanager
def _as_in(model: CausalModel, training: bool) -> Iterator[None]:
    """Without gradients, with one seed, and everything put back afterwards."""
    was_training = {module: module.training for module in model.modules()}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(PROBE_SEED)
        model.train(training)
        try:
            yield
        finally:
            for module, mode in was_training.items():
                module.training = mode


def _find_largest_change(logits: torch.Tensor, other: torch.Tensor) -> float:
    """The largest relative change of a token's logits.

    A common offset of all logits means nothing and would hide a change, so it is taken out.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    change = other - other.mean(-1, keepdim=True) - centred
    return float((change.norm(dim=-1) / centred.norm(dim=-1)).max())


def _compare_losses(
    ids: Sequence[int], packed_logits: torch.Tensor, alone_logits: torch.Tensor
) -> float:
    targets = torch.tensor(ids[1:], device=packed_logits.device)
    packed, alone = (
        float(torch.nn.functional.cross_entropy(logits[:-1], targets))
        for logits in (packed_logits, alone_logits)
    )
    return abs(packed - alone) / alone
