"""The metrics of question answering, against numbers computed by hand."""

from __future__ import annotations

from functools import partial

import pytest

from lora_sft.evaluate.metrics import squad

f1, exact_match, HasAns_f1, HasAns_exact, NoAns_exact = (
    partial(metric, no_answer="unanswerable")
    for metric in (
        squad.f1,
        squad.exact_match,
        squad.HasAns_f1,
        squad.HasAns_exact,
        squad.NoAns_exact,
    )
)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Paris", "paris"),
        ("The Eiffel Tower.", "eiffel tower"),
        ("  a   cat,\n a dog ", "cat dog"),
        ("U.S.", "us"),
        ("the", "A!"),
    ],
)
def test_case_punctuation_articles_and_white_space_do_not_count(answer, reference):
    assert exact_match([answer], [[reference]]) == f1([answer], [[reference]]) == 1


@pytest.mark.parametrize(
    ("answer", "reference"), [("another", "other"), ("anthem", "them"), ("«Paris»", "Paris")]
)
def test_parts_of_words_and_foreign_punctuation_stay(answer, reference):
    assert exact_match([answer], [[reference]]) == 0


def test_f1_counts_common_tokens_as_often_as_both_have_them():
    # Common: red, red. Answered: 3. Expected: 4.
    assert f1(["red red green"], [["red red red blue"]]) == pytest.approx(2 * 2 / (3 + 4))
    assert exact_match(["red red green"], [["red red red blue"]]) == 0
    assert f1(["cat"], [["dog"]]) == 0
    assert f1([""], [["dog"]]) == f1(["the"], [["dog"]]) == 0


def test_the_best_accepted_answer_counts():
    accepted = ["in the year 1969", "1969", "July"]
    assert exact_match(["1969"], [accepted]) == f1(["1969"], [accepted]) == 1
    # Common with "in year 1969": 1 of 2 and 3. Common with "1969": 1 of 2 and 1.
    assert f1(["July 1969"], [accepted[:2]]) == pytest.approx(2 * 1 / (2 + 1))


@pytest.mark.parametrize("answer", ["", " ", "the.", "unanswerable", "Unanswerable."])
def test_without_an_accepted_answer_nothing_and_the_text_of_no_answer_are_right(answer):
    assert exact_match([answer], [[]]) == f1([answer], [[]]) == NoAns_exact([answer], [[]]) == 1
    assert exact_match([answer], [["Paris"]]) == f1([answer], [["Paris"]]) == 0


@pytest.mark.parametrize("answer", ["Paris", "unanswerable question", "no", None])
def test_without_an_accepted_answer_every_other_text_is_wrong(answer):
    assert exact_match([answer], [[]]) == f1([answer], [[]]) == NoAns_exact([answer], [[]]) == 0


def test_the_text_of_no_answer_is_the_one_that_is_passed():
    assert squad.exact_match(["keine Antwort"], [[]], no_answer="Keine Antwort") == 1
    assert squad.exact_match(["unanswerable"], [[]], no_answer="Keine Antwort") == 0


def test_figures_by_whether_the_question_has_an_answer():
    references = [["Paris"], ["the red cat"], [], [], []]
    answers = ["paris", "red dog", "", "Rome", None]
    assert HasAns_exact(answers, references) == 1 / 2
    assert HasAns_f1(answers, references) == pytest.approx((1 + 2 * 1 / (2 + 2)) / 2)
    assert NoAns_exact(answers, references) == pytest.approx(1 / 3)
    assert exact_match(answers, references) == pytest.approx(2 / 5)
    assert f1(answers, references) == pytest.approx((1 + 1 / 2 + 1 + 0 + 0) / 5)


def test_an_unparseable_answer_is_wrong():
    assert exact_match([None], [["Paris"]]) == f1([None], [["Paris"]]) == 0


def test_accepted_answers_that_normalise_to_nothing_are_dropped():
    assert exact_match([""], [["the", "Paris"]]) == 0
    assert exact_match([""], [["the"]]) == 1
    assert exact_match(["unanswerable"], [["the"]]) == 0
