"""Measure whether documents in one packed row are isolated from each other.

They are isolated only if every layer that mixes tokens respects the borders of documents. Attention
does this by a mask or a kernel. State-space, linear-attention and convolution layers need certain
arguments, and many of them accept these arguments but ignore them. So the answer depends on the
model, the attention, the installed kernels and the library version. It cannot be read from the
model's name.

The probe runs the model itself. It changes one of two packed documents, and then the outputs for
the other document must not change. Each document must also have the same loss as in a row of its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from lora_sft.model.base_model import CausalModel

# A function that packs the token ids of documents into one row, and returns the model's inputs, in
# the same way as training.
MakeBatch: TypeAlias = Callable[[Sequence[Sequence[int]]], Mapping[str, Any]]

# If documents are isolated, the other document adds only zeros to each sum, so nothing changes. But
# in some models, tokens also share batches of experts or scales of 8-bit activations. Then the
# rounding changes. `_measure_rounding` measures this; the limit of the leak is a multiple of it.
LEAST_LEAK = 1e-5
TIMES_ROUNDING = 10
# Packing changes the order in which sums are computed, so the loss may change a little.
LOSS_TOLERANCE, LOSS_TOLERANCE_16_BIT = 1e-3, 2e-2
PROBE_SEED = 0


@dataclass(frozen=True)
class Isolation:
    """The effect of one document on another one in the same row, as relative changes.

    Attributes:
        leak: The largest change of a token's logits when the other document changes.
        rounding: The same change when the two documents are two rows of a batch.
        loss_change: The change of a document's mean loss by packing.
        loss_tolerance: The largest `loss_change` that is allowed.
        refusal: The reason if the model could not be measured, else "".
    """

    leak: float = 0.0
    rounding: float = 0.0
    loss_change: float = 0.0
    loss_tolerance: float = LOSS_TOLERANCE
    refusal: str = ""

    @property
    def fault(self) -> str:
        """Return the reason why rows of this model cannot be packed, or ""."""
        if self.refusal:
            return self.refusal
        if not self.leak <= max(LEAST_LEAK, TIMES_ROUNDING * self.rounding):  # NaN is a fault too
            return f"packed documents see each other (logits change by {self.leak:.2g})"
        if not self.loss_change <= self.loss_tolerance:
            return f"packing changes the loss of a document (by {self.loss_change:.2g})"
        return ""


def measure_isolation(
    model: CausalModel,
    make_batch: MakeBatch,
    documents: tuple[Sequence[int], Sequence[int]],
    autocast: torch.dtype | None = None,
) -> Isolation:
    """Measure the isolation of two documents in one packed row.

    The model runs on the documents packed, packed with one of them changed, in separate rows of a
    batch, and one at a time. The leak is measured in training mode, whose code may differ from that
    of inference. Equal seeds give equal dropout. The losses are compared in inference mode, because
    a packed document and a single document would have different dropout.
    """
    first, second = documents
    border = len(first)

    def run(*packed: Sequence[int], training: bool = True) -> torch.Tensor:
        num_tokens = sum(map(len, packed))  # padding follows
        return _compute_logits(model, make_batch(packed), training, autocast)[:num_tokens]

    try:
        together = run(first, second)
        first_changed, second_changed = run(_change(first), second), run(first, _change(second))
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        return Isolation(refusal=f"the model does not accept position ids ({error})")
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
    """Return the change of one row of a batch when the other row changes.

    Only rounding can cause it, because no layer mixes the rows of a batch.
    """
    length = min(len(first), len(second))
    line = list(second[:length])
    before, after = (
        _compute_logits(model, {"input_ids": torch.tensor([line, other])}, True, autocast)
        for other in (list(first[:length]), _change(first[:length]))
    )
    return _find_largest_change(before, after)


def _change(ids: Sequence[int]) -> list[int]:
    """Return a document of the same length in which every token is different and valid."""
    return [token - 1 if token else 1 for token in ids]


def _compute_logits(
    model: CausalModel, batch: Mapping[str, Any], training: bool, autocast: torch.dtype | None
) -> torch.Tensor:
    """Return the logits [T, V] of the first row of a batch, in float32."""
    device = model.get_input_embeddings().weight.device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    with _probe_mode(model, training), torch.autocast(device.type, autocast, autocast is not None):
        return model(**inputs, use_cache=False).logits[0].float()


@contextmanager
def _probe_mode(model: CausalModel, training: bool) -> Iterator[None]:
    """Run a block without gradients and with a fixed seed, then restore the previous state."""
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
    """Return the largest relative change of a token's logits.

    The mean of the logits is subtracted: it has no meaning, and it would hide a change.
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
