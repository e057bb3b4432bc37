"""Metrics of text classification, as scikit-learn defines them with `zero_division=0`.

An answer is a label, or a list of labels where a row may have several. An answer is None if the
text of the model is no label. Such an unparseable answer is wrong, and its reference counts as
missed. It is no class of the averages. An answer that is not in `labels` is treated in the same
way.

The averages named `macro` are over the labels that occur in the references or in the answers.

Sources:
    https://scikit-learn.org/stable/modules/model_evaluation.html#classification-metrics
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    cohen_kappa_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
)

Numbers: TypeAlias = NDArray[np.int64]
Answer: TypeAlias = str | Sequence[str] | None  # a label, or the labels of a row that may have many

UNPARSEABLE = -1  # stands for an unparseable answer in the numbered labels


def accuracy(
    answers: Sequence[str | None], references: Sequence[str], labels: Sequence[str]
) -> float:
    """Return the share of rows whose answer is the reference, from 0 to 1."""
    pairs = zip(answers, references, strict=True)
    return fmean(answer == reference for answer, reference in pairs)


def subset_accuracy(
    answers: Sequence[Sequence[str] | None],
    references: Sequence[Sequence[str]],
    labels: Sequence[str],
) -> float:
    """Return the share of rows whose set of labels is exactly that of the reference, from 0 to 1.

    The order of the labels does not matter.
    """
    pairs = zip(answers, references, strict=True)
    return fmean(
        answer is not None and set(answer) == set(reference) for answer, reference in pairs
    )


def f1_macro(
    answers: Sequence[Answer], references: Sequence[str | Sequence[str]], labels: Sequence[str]
) -> float:
    """Return the mean of the F1 of each label that occurs, from 0 to 1.

    F1 is 2PR / (P + R), where P is the precision of a label and R is its recall.
    """
    return _average(f1_score, "macro", answers, references, labels)


def f1_micro(
    answers: Sequence[Answer], references: Sequence[str | Sequence[str]], labels: Sequence[str]
) -> float:
    """Return the F1 of the counts of all labels together, from 0 to 1."""
    return _average(f1_score, "micro", answers, references, labels)


def f1_weighted(
    answers: Sequence[Answer], references: Sequence[str | Sequence[str]], labels: Sequence[str]
) -> float:
    """Return the mean of the F1 of each label, weighted by its number of references, 0 to 1."""
    return _average(f1_score, "weighted", answers, references, labels)


def precision_macro(
    answers: Sequence[Answer], references: Sequence[str | Sequence[str]], labels: Sequence[str]
) -> float:
    """Return the mean of the precision of each label that occurs, from 0 to 1."""
    return _average(precision_score, "macro", answers, references, labels)


def recall_macro(
    answers: Sequence[Answer], references: Sequence[str | Sequence[str]], labels: Sequence[str]
) -> float:
    """Return the mean of the recall of each label that occurs, from 0 to 1."""
    return _average(recall_score, "macro", answers, references, labels)


def f1_samples(
    answers: Sequence[Sequence[str] | None],
    references: Sequence[Sequence[str]],
    labels: Sequence[str],
) -> float:
    """Return the mean over rows of the F1 between the labels of the answer and the reference.

    The F1 of a row is 2 x common / (answered + expected), from 0 to 1. It is 0 if both have no
    label, because scikit-learn divides by zero there.
    """
    truth, found = _mark_labels(answers, references, labels)
    return float(f1_score(truth, found, average="samples", zero_division=0))


def mcc(answers: Sequence[str | None], references: Sequence[str], labels: Sequence[str]) -> float:
    """Return Matthews' correlation coefficient of several classes, from -1 to 1.

    Unparseable answers are one more class of the answers. The coefficient is 0 if all references or
    all answers are one class.

    Source:
        Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation
        coefficient", https://doi.org/10.1016/j.compbiolchem.2004.09.006
    """
    truth, found = _number_labels(answers, references, labels)
    if len(np.unique(truth)) == 1 or len(np.unique(found)) == 1:
        return 0.0  # scikit-learn says the same, with a warning
    return float(matthews_corrcoef(truth, found))


def qwk(answers: Sequence[str | None], references: Sequence[str], labels: Sequence[str]) -> float:
    """Return Cohen's kappa with quadratic weights over the order of `labels`, from -1 to 1.

    The distance between two labels is the difference of their places in `labels`. An unparseable
    answer counts as the label that is farthest from its reference. Kappa is undefined if all
    references and answers are the same label. The figure is then 0.

    Source:
        Cohen (1968), "Weighted kappa: nominal scale agreement with provision for scaled
        disagreement or partial credit", https://doi.org/10.1037/h0026256
    """
    truth, found = _number_labels(answers, references, labels)
    last = len(labels) - 1
    farthest = np.where(2 * truth > last, 0, last)
    found = np.where(found == UNPARSEABLE, farthest, found)
    if len(np.union1d(truth, found)) == 1:
        return 0.0
    places = np.arange(len(labels))
    return float(cohen_kappa_score(truth, found, labels=places, weights="quadratic"))


def _average(
    score: Callable[..., Any],
    average: str,
    answers: Sequence[Answer],
    references: Sequence[Any],
    labels: Sequence[str],
) -> float:
    """Return `score` averaged over the labels that occur, or 0 if no row has a label."""
    if isinstance(references[0], str):
        truth, found = _number_labels(answers, references, labels)
        occurring = np.union1d(truth, found[found != UNPARSEABLE])
    else:
        truth, found = _mark_labels(answers, references, labels)
        occurring = np.flatnonzero((truth | found).any(axis=0))
    if not occurring.size:
        return 0.0
    return float(score(truth, found, labels=occurring, average=average, zero_division=0))


def _number_labels(
    answers: Sequence[Any], references: Sequence[str], labels: Sequence[str]
) -> tuple[Numbers, Numbers]:
    """Return the place in `labels` of each reference and of each answer."""
    places = {label: place for place, label in enumerate(labels)}
    truth = np.array([places[reference] for reference in references])
    found = np.array(
        [places.get(answer, UNPARSEABLE) for answer, _ in zip(answers, references, strict=True)]
    )
    return truth, found


def _mark_labels(
    answers: Sequence[Any], references: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[Numbers, Numbers]:
    """Return two matrices of rows and labels that mark the labels of references and answers.

    A column of zeros comes last: scikit-learn does not take one column for several labels.
    """
    places = {label: place for place, label in enumerate(labels)}
    truth, found = (np.zeros((len(references), len(labels) + 1), dtype=np.int64) for _ in range(2))
    for row, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        truth[row, [places[label] for label in reference]] = 1
        if answer is not None and places.keys() >= set(answer):
            found[row, [places[label] for label in answer]] = 1
    return truth, found
