"""What must hold together in `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding

EVALUATE_METRICS = ("exact_match",)


def metrics_are_known(recipe: Recipe) -> Iterator[Finding]:
    """Found out after training, a misspelt metric would cost the whole evaluation."""
    for index, metric in enumerate(recipe.evaluate.metrics):
        if metric not in EVALUATE_METRICS:
            what = f'no metric "{metric}"; there are: {", ".join(EVALUATE_METRICS)}'
            fix = f"write evaluate.metrics: [{EVALUATE_METRICS[0]}]"
            yield Finding((f"evaluate.metrics.{index}",), what, fix)
