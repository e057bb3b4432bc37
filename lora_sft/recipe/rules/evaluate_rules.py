"""Rules about the section `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator

from lora_sft.recipe.metric_names import METRIC_FAMILIES
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding


def metrics_are_known(recipe: Recipe) -> Iterator[Finding]:
    """Refuse an unknown metric now: evaluation would find it only after training."""
    known = METRIC_FAMILIES
    if recipe.kind is not None and recipe.task is not None:
        known = recipe.kind.list_metrics(recipe.task)
    for index, metric in enumerate(recipe.evaluate.metrics):
        if metric not in known:
            what = f'unknown metric "{metric}"; the metrics are: {", ".join(known)}'
            fix = f"write evaluate.metrics: [{next(iter(known))}]"
            yield Finding((f"evaluate.metrics.{index}",), what, fix)
