"""Describe the result of a merge's verification in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The name of the reference in a report: the chosen form of the base model, with the adapter.
REFERENCE_NAME = "base as merged onto + adapter"


def describe_check(checked: Mapping[str, Any]) -> str:
    """Return a text that says what was compared, and how large the differences are."""
    parts = []
    tensors = checked.get("tensors")
    if tensors:
        ulps = tensors["largest_ulps"]
        exact = "equal to the formula" + (f" within {ulps} in the last place" if ulps else "")
        parts.append(f"all {tensors['compared']} tensors ({tensors['merged']} merged) {exact}")
    if checked["prompts"]:
        parts.append(
            f"{checked['prompts']} prompts with a mean KL of {checked['mean_kl']:.2e} nats, top-1 "
            f"agreement {100 * checked['top1_agreement']:.2f} %, largest logit difference "
            f"{checked['max_abs_logit_difference']:.2e}"
        )
    return "; ".join(parts)
