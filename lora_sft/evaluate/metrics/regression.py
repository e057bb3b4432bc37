"""Metrics of text regression: how well the answered numbers follow the references.

An answer is None if the text of the model is no number. Such an unparseable answer is never left
out. It counts as the end of the references' range that is farther from its reference. An answer
that is infinite or NaN is treated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error


def spearman(answers: Sequence[float | None], references: Sequence[float]) -> float:
    """Return Spearman's rank correlation, from -1 to 1, with equal values at their mean rank.

    The correlation is undefined if all answers or all references are equal. The figure is then 0.

    Source:
        Spearman (1904), "The proof and measurement of association between two things",
        https://doi.org/10.2307/1412159
    """
    return _correlate(spearmanr, answers, references)


def pearson(answers: Sequence[float | None], references: Sequence[float]) -> float:
    """Return Pearson's linear correlation, from -1 to 1.

    The correlation is undefined if all answers or all references are equal. The figure is then 0.

    Source:
        https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html
    """
    return _correlate(pearsonr, answers, references)


def mae(answers: Sequence[float | None], references: Sequence[float]) -> float:
    """Return the mean of the absolute errors, in the unit of the references.

    Source:
        https://scikit-learn.org/stable/modules/model_evaluation.html#mean-absolute-error
    """
    return float(mean_absolute_error(references, _fill_unparseable(answers, references)))


def rmse(answers: Sequence[float | None], references: Sequence[float]) -> float:
    """Return the square root of the mean squared error, in the unit of the references.

    Source:
        https://scikit-learn.org/stable/modules/model_evaluation.html#mean-squared-error
    """
    return float(root_mean_squared_error(references, _fill_unparseable(answers, references)))


def _correlate(
    correlation: Callable[..., Any], answers: Sequence[float | None], references: Sequence[float]
) -> float:
    numbers = _fill_unparseable(answers, references)
    if len(set(numbers)) == 1 or len(set(references)) == 1:
        return 0.0
    return float(correlation(numbers, references).statistic)


def _fill_unparseable(answers: Sequence[float | None], references: Sequence[float]) -> list[float]:
    """Return the answers, with each unparseable one replaced as the module says."""
    lowest, highest = min(references), max(references)
    return [
        answer
        if answer is not None and math.isfinite(answer)
        else max(lowest, highest, key=lambda end: abs(end - reference))
        for answer, reference in zip(answers, references, strict=True)
    ]
