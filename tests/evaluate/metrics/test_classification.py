"""The metrics of text classification, against numbers computed by hand and against scikit-learn."""

from __future__ import annotations

import inspect
import random

import pytest
from sklearn import metrics as sklearn_metrics

from lora_sft.evaluate.metrics import classification
from lora_sft.evaluate.metrics.classification import (
    accuracy,
    f1_macro,
    f1_micro,
    f1_samples,
    f1_weighted,
    mcc,
    precision_macro,
    qwk,
    recall_macro,
    subset_accuracy,
)

LABELS = ["bad", "fair", "good"]
# One answer is wrong, and one is no label. "fair" occurs only as an answer.
REFERENCES = ["bad", "bad", "good", "good"]
ANSWERS = ["bad", "fair", "good", None]

TAGS = ["a", "b", "c", "never"]
TAG_REFERENCES = [["a", "b"], ["c"], [], ["a"]]
TAG_ANSWERS = [["b", "a"], ["a"], [], None]


def score(metric, answers=ANSWERS, references=REFERENCES, labels=LABELS) -> float:
    return pytest.approx(metric(answers, references, labels))


def test_all_metrics_of_the_contract_are_there_and_take_answers_references_and_labels():
    functions = {
        name: function
        for name, function in inspect.getmembers(classification, inspect.isfunction)
        if function.__module__ == classification.__name__ and not name.startswith("_")
    }
    assert set(functions) == {
        "accuracy", "f1_macro", "f1_micro", "f1_weighted", "precision_macro", "recall_macro",
        "mcc", "qwk", "f1_samples", "subset_accuracy",
    }  # fmt: skip
    for function in functions.values():
        assert list(inspect.signature(function).parameters) == ["answers", "references", "labels"]


def test_an_unparseable_answer_is_wrong_and_no_class_of_the_averages():
    # Precision of bad, fair, good: 1, 0, 1. Recall: 1/2, 0, 1/2. F1: 2/3, 0, 2/3.
    assert score(accuracy) == 2 / 4
    assert score(precision_macro) == (1 + 0 + 1) / 3
    assert score(recall_macro) == (1 / 2 + 0 + 1 / 2) / 3
    assert score(f1_macro) == (2 / 3 + 0 + 2 / 3) / 3
    assert score(f1_weighted) == 2 / 3
    # 2 right, 3 answered with a label, 4 expected.
    assert score(f1_micro) == 2 * 2 / (3 + 4)


def test_an_answer_outside_the_labels_counts_as_unparseable():
    odd = ["bad", "fair", "good", "excellent"]
    for metric in (accuracy, f1_macro, f1_micro, f1_weighted, precision_macro, recall_macro, mcc):
        assert score(metric, odd) == metric(ANSWERS, REFERENCES, LABELS)
    assert score(f1_samples, [["a", "z"]], [["a"]], TAGS) == 0


def test_labels_that_never_occur_do_not_lower_the_macro_average():
    assert score(f1_macro, ["bad", "good"], ["bad", "good"]) == 1
    assert score(f1_macro, labels=[*LABELS, "never", "nowhere"]) == (2 / 3 + 0 + 2 / 3) / 3


def test_answers_of_which_none_is_a_label_score_zero():
    nothing = [None] * 4
    for metric in (accuracy, f1_macro, f1_micro, f1_weighted, precision_macro, recall_macro, mcc):
        assert metric(nothing, REFERENCES, LABELS) == 0


def test_matthews_coefficient_of_two_classes_is_the_textbook_formula():
    # 3 true positives, 1 false positive, 1 false negative, 2 true negatives.
    references = ["yes"] * 4 + ["no"] * 3
    answers = ["yes", "yes", "yes", "no", "yes", "no", "no"]
    expected = (3 * 2 - 1 * 1) / (4 * 4 * 3 * 3) ** 0.5
    assert score(mcc, answers, references, ["no", "yes"]) == expected


def test_matthews_coefficient_is_zero_for_one_constant_class():
    assert mcc(["bad"] * 3, ["bad", "good", "bad"], LABELS) == 0
    assert mcc(["bad"] * 3, ["bad"] * 3, LABELS) == 0


def test_quadratic_kappa_follows_the_order_of_the_labels():
    # Observed squared distances: 0, 1, 0, 4. Expected: all pairs of an answer and a reference / 4.
    references, answers = ["bad", "fair", "good", "bad"], ["bad", "good", "good", "good"]
    places = {label: place for place, label in enumerate(LABELS)}
    pairs = [(places[a] - places[b]) ** 2 for a in answers for b in references]
    assert score(qwk, answers, references) == 1 - 5 / (sum(pairs) / 4)
    assert qwk(["bad", "fair"], ["bad", "fair"], LABELS) == 1
    assert qwk(answers, references, ["good", "bad", "fair"]) != qwk(answers, references, LABELS)


def test_quadratic_kappa_takes_an_unparseable_answer_for_the_farthest_label():
    references = ["bad", "fair", "good", "good"]
    unparseable = ["bad", "fair", "good", None]
    assert score(qwk, unparseable, references) == qwk(
        ["bad", "fair", "good", "bad"], references, LABELS
    )
    assert qwk([None, "fair"], ["bad", "fair"], LABELS) < qwk(["fair"] * 2, ["bad", "fair"], LABELS)


def test_quadratic_kappa_is_zero_where_it_is_undefined():
    assert qwk(["bad", "bad"], ["bad", "bad"], LABELS) == 0
    assert qwk(["bad", None], ["bad", "bad"], ["bad"]) == 0


def test_several_labels_per_row_by_hand():
    # Right: a and b of row 0. Answered: a, b, a. Expected: a, b, c, a.
    assert score(f1_micro, TAG_ANSWERS, TAG_REFERENCES, TAGS) == 2 * 2 / (3 + 4)
    # F1 of a: 1 right, 2 answered, 2 expected. Of b: 1. Of c: 0. "never" does not occur.
    assert score(f1_macro, TAG_ANSWERS, TAG_REFERENCES, TAGS) == (1 / 2 + 1 + 0) / 3
    assert score(precision_macro, TAG_ANSWERS, TAG_REFERENCES, TAGS) == (1 / 2 + 1 + 0) / 3
    assert score(f1_weighted, TAG_ANSWERS, TAG_REFERENCES, TAGS) == (2 * 1 / 2 + 1 + 0) / 4
    # scikit-learn scores the row without any label 0.
    assert score(f1_samples, TAG_ANSWERS, TAG_REFERENCES, TAGS) == 1 / 4
    # The order does not matter, and an empty set equals an empty set.
    assert score(subset_accuracy, TAG_ANSWERS, TAG_REFERENCES, TAGS) == 2 / 4


def test_an_unparseable_answer_is_not_the_empty_set_of_labels():
    assert subset_accuracy([None, []], [[], []], TAGS) == 0.5


def test_one_possible_label_per_row_or_none_at_all():
    assert score(f1_macro, [["a"], []], [["a"], ["a"]], ["a"]) == 2 / 3
    assert score(f1_samples, [["a"], []], [["a"], ["a"]], ["a"]) == 1 / 2
    assert f1_macro([[], None], [[], []], ["a"]) == 0
    assert f1_micro([[]], [[]], TAGS) == 0


@pytest.mark.parametrize("seed", range(5))
def test_parseable_answers_score_as_in_scikit_learn(seed):
    draw = random.Random(seed)
    labels = [f"label {number}" for number in range(6)]
    references, answers = (draw.choices(labels[:5], k=40) for _ in range(2))
    common = {"average": "macro", "zero_division": 0}
    assert score(accuracy, answers, references, labels) == sklearn_metrics.accuracy_score(
        references, answers
    )
    for metric, oracle in (
        (f1_macro, sklearn_metrics.f1_score),
        (precision_macro, sklearn_metrics.precision_score),
        (recall_macro, sklearn_metrics.recall_score),
    ):
        assert score(metric, answers, references, labels) == oracle(references, answers, **common)
    assert score(mcc, answers, references, labels) == sklearn_metrics.matthews_corrcoef(
        references, answers
    )
    assert score(qwk, answers, references, labels) == sklearn_metrics.cohen_kappa_score(
        references, answers, labels=labels, weights="quadratic"
    )
