"""The metrics of text regression, against numbers computed by hand."""

from __future__ import annotations

import math
import warnings

import pytest

from lora_sft.evaluate.metrics.regression import mae, pearson, rmse, spearman

REFERENCES = [1.0, 2.0, 3.0, 4.0]


def test_errors_by_hand():
    answers = [1.0, 3.0, 3.0, 1.0]
    assert mae(answers, REFERENCES) == pytest.approx((0 + 1 + 0 + 3) / 4)
    assert rmse(answers, REFERENCES) == pytest.approx(math.sqrt((0 + 1 + 0 + 9) / 4))


def test_correlations_by_hand():
    # Deviations of the answers: -3, -2, -1, 6. Those of the references: -1.5, -0.5, 0.5, 1.5.
    answers = [1.0, 2.0, 3.0, 10.0]
    assert pearson(answers, REFERENCES) == pytest.approx(14 / math.sqrt(50 * 5))
    assert spearman(answers, REFERENCES) == pytest.approx(1)
    # 1 - 6 x sum of squared rank differences / (n (n^2 - 1)), with differences 1, 1, 0, 0.
    assert spearman([2.0, 1.0, 3.0, 4.0], REFERENCES) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_equal_values_get_their_mean_rank():
    # The ranks 1.5, 1.5, 3, 4 have the deviations -1, -1, 0.5, 1.5.
    expected = (1.5 + 0.5 + 0.25 + 2.25) / math.sqrt(4.5 * 5)
    assert spearman([7, 7, 8, 9], REFERENCES) == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [spearman, pearson])
def test_a_correlation_with_constant_values_is_zero_without_a_warning(correlation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert correlation([2.0] * 4, REFERENCES) == 0
        assert correlation(REFERENCES, [2.0] * 4) == 0
        assert correlation([2.0], [3.0]) == 0


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
def test_an_unparseable_answer_counts_as_the_far_end_of_the_references(odd):
    # 1 is farther from 4 than 4 is, and 4 is farther from 2 than 1 is.
    answers, filled = [1.0, odd, 3.0, odd], [1.0, 4.0, 3.0, 1.0]
    for metric in (mae, rmse, pearson, spearman):
        assert metric(answers, REFERENCES) == metric(filled, REFERENCES)
    assert mae(answers, REFERENCES) == pytest.approx((2 + 3) / 4)


def test_answers_of_which_none_is_a_number_do_not_correlate_well():
    assert spearman([None] * 4, REFERENCES) < 0
    assert mae([None] * 4, REFERENCES) == pytest.approx((3 + 2 + 2 + 3) / 4)
