"""How much arithmetic a token of LoRA training needs, whoever computes it.

Per token, with frozen base weights N (linear layers), head E, adapter P, attention width d,
L layers and S the mean attention span (documents are isolated):

    forward 2N + input gradients 2N                      = 4N   (no weight gradients: frozen)
    adapter forward 2P + both gradients 4P               = 6P
    head forward 2E + input gradients 2E                 = 4E
    causal attention forward 2Sd + backward 5Sd, a layer = 7SdL

Recomputed activations are not counted: they are a choice, not a need. The convention ("MFU4") is
that of NVIDIA NeMo AutoModel's performance summary, which counts the same way; the usual 6N
overstates LoRA by half.
"""

from __future__ import annotations

from benchmarks.shapes import ModelShape


def count_flops_per_token(shape: ModelShape, attention_span: float, r: int) -> float:
    """Needed floating-point operations a token."""
    d = shape.heads * shape.head_dim
    return (
        4 * shape.linear_weights
        + 6 * shape.count_adapter_weights(r)
        + 4 * shape.head_weights
        + 7 * attention_span * d * shape.layers
    )
