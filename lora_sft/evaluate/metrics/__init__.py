"""Metrics on generated answers, one file per family of metrics.

`METRIC_FAMILIES` lists all metrics. A metric is the function of its name, and all other functions
of a family's file are private. A family is imported when a recipe names one of its metrics. So a
library is needed only by the recipes that use its family.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from lora_sft.recipe.metric_names import METRIC_FAMILIES

Metric = Callable[[Sequence[str], Sequence[str]], float]  # (answers, references) -> score


def load_metric(name: str) -> Metric:
    """Return the function that computes the metric `name` from answers and references."""
    family = importlib.import_module(f"{__name__}.{METRIC_FAMILIES[name]}")
    metric: Metric = getattr(family, name)
    return metric
