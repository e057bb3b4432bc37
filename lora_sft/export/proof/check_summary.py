"""A merge's verification in words, for the terminal and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AGAINST = "base as merged onto + adapter"


def describe_check(checked: Mapping[str, Any]) -> str:
    """What was compared and how far it was apart."""
    parts = []
    tensors = checked.get("tensors")
    if tensors:
        ulps = tensors["largest_ulps"]
        exact = "equal to the formula" + (f" but for {ulps} in the last place" if ulps else "")
        parts.append(f"all {tensors['compared']} tensors ({tensors['merged']} merged) {exact}")
    if checked["prompts"]:
        parts.append(
            f"{checked['prompts']} prompts with a mean KL of {checked['mean_kl']:.2e} nats, top-1 "
            f"agreement {100 * checked['top1_agreement']:.2f} %, largest logit difference "
            f"{checked['max_abs_logit_difference']:.2e}"
        )
    return "; ".join(parts)
