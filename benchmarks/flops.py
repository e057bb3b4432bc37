"""Count the floating-point operations that LoRA training needs per token, in any implementation.

N, E and P are the numbers of weights: N of the frozen linear layers, E of the output head, P of the
adapter. d is the attention width and L the number of layers. S is the mean attention span, where
attention does not cross documents. Operations per token:

    base layers: forward 2N + input gradients 2N              = 4N    (no weight gradients: frozen)
    adapter: forward 2P + input and weight gradients 4P       = 6P
    output head: forward 2E + input gradients 2E              = 4E
    causal attention: (forward 2Sd + backward 5Sd) per layer  = 7SdL

Recomputed activations are not counted, because training does not need them. NVIDIA NeMo AutoModel's
performance summary counts in the same way and calls it "MFU4". The usual 6N is 50 % too much for
LoRA.
"""

from __future__ import annotations

from benchmarks.shapes import ModelShape


def count_flops_per_token(shape: ModelShape, attention_span: float, r: int) -> float:
    """Return the needed floating-point operations per token, with an adapter of rank `r`."""
    d = shape.heads * shape.head_dim
    return (
        4 * shape.linear_weights
        + 6 * shape.count_adapter_weights(r)
        + 4 * shape.head_weights
        + 7 * attention_span * d * shape.layers
    )
