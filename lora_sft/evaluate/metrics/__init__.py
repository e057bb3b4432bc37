"""Metrics on generated answers, one file per family of metrics.

`METRIC_FAMILIES` of the recipe lists them. A metric is the function of its own name; everything
else in a family's file is private. A family is imported when a recipe asks for one of its metrics,
so that a library which one family needs is not needed by the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from lora_sft.recipe.metric_names import METRIC_FAMILIES

Metric = Callable[[Sequence[str], Sequence[str]], float]  # answers, references


def load_metric(name: str) -> Metric:
    """Return the function that computes the metric `name` from answers and their references."""
    family = importlib.import_module(f"{__name__}.{METRIC_FAMILIES[name]}")
    metric: Metric = getattr(family, name)
    return metric
