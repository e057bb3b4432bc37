"""ROUGE, against numbers computed by hand and, where it is installed, against rouge-score."""

from __future__ import annotations

import random

import pytest

from lora_sft.evaluate.metrics import rouge
from lora_sft.evaluate.metrics.rouge import rouge1, rouge2, rougeL, rougeLsum, signature


def test_figures_of_one_row_by_hand():
    # Tokens: 6 and 5. Common: the, cat, sat, mat (the second "the" has no partner).
    answer, reference = "The cat sat, on the mat!", "a cat sat the mat"
    assert rouge1([answer], [[reference]]) == pytest.approx(2 * 4 / (6 + 5))
    # Pairs: 5 and 4. Common: "cat sat" and "the mat".
    assert rouge2([answer], [[reference]]) == pytest.approx(2 * 2 / (5 + 4))
    assert rougeL([answer], [[reference]]) == pytest.approx(2 * 4 / (6 + 5))
    assert rougeL(["mat the sat cat"], [[reference]]) == pytest.approx(2 * 1 / (4 + 5))


def test_tokens_are_counted_as_often_as_both_texts_have_them():
    assert rouge1(["go go go"], [["go go stop"]]) == pytest.approx(2 * 2 / (3 + 3))


def test_words_are_not_stemmed_and_letters_with_accents_split_them():
    assert rouge1(["running"], [["run"]]) == 0
    assert rouge1(["na ve"], [["naïve"]]) == 1
    assert rouge1(["3.14"], [["3 14"]]) == 1


def test_lines_by_the_example_of_the_paper():
    """Section 3.2: the union of the subsequences `w1 w2` and `w1 w3 w5` has four words."""
    answer = "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"
    reference = "w1 w2 w3 w4 w5"
    assert rougeLsum([answer], [[reference]]) == pytest.approx(2 * 4 / (10 + 5))
    # Without lines, the longest common subsequence is `w1 w2 w3 w5`.
    assert rougeL([answer], [[reference]]) == pytest.approx(2 * 4 / (10 + 5))


def test_the_order_of_lines_counts_only_without_lines():
    answer, reference = "red fox\nblue sea", "blue sea\nred fox"
    assert rougeLsum([answer], [[reference]]) == 1
    assert rougeL([answer], [[reference]]) == pytest.approx(2 * 2 / (4 + 4))


def test_a_token_of_a_line_counts_only_as_often_as_the_other_text_has_it():
    assert rougeLsum(["red"], [["red\nred\nred"]]) == pytest.approx(2 * 1 / (1 + 3))
    assert rougeLsum(["red\n\nred\n"], [["red"]]) == pytest.approx(2 * 1 / (2 + 1))


def test_of_two_longest_subsequences_the_one_of_rouge_score_counts():
    # "c a" shares "a" or "c" with "a c". rouge-score takes "a", which "b a" already shares.
    assert rougeLsum(["b a\nc a"], [["a c"]]) == pytest.approx(2 * 1 / (4 + 2))


def test_a_corpus_is_the_mean_over_rows_of_the_best_accepted_summary():
    answers = ["red fox", "blue sea"]
    references = [["green fox", "a red fox here"], ["no match"]]
    # Row 0: 1/2 and 2 x 2 / (2 + 4). Row 1: 0.
    for metric in (rouge1, rougeL, rougeLsum):
        assert metric(answers, references) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("metric", [rouge1, rouge2, rougeL, rougeLsum])
def test_texts_without_tokens_score_zero(metric):
    assert metric([None], [["red fox"]]) == metric([""], [["red fox"]]) == 0
    assert metric(["red fox"], [[""]]) == metric(["..."], [["\n\n"]]) == 0
    assert metric(["red fox"], [["Red fox."]]) == 1


@pytest.mark.parametrize(
    ("answer", "reference", "common", "total"),
    [
        ("Красный лис", "красный кот", 1, 4),
        ("η κόκκινη αλεπού", "Η αλεπού", 2, 5),
        ("빨간 여우", "빨간 바다", 1, 4),
        ("GPU быстро учит", "gpu учит", 2, 5),
    ],
)
def test_tokens_of_other_scripts_are_runs_of_word_characters(answer, reference, common, total):
    assert rouge1([answer], [[reference]]) == pytest.approx(2 * common / total)
    assert rougeLsum([answer], [[reference]]) == pytest.approx(2 * common / total)
    assert r"tok:\w+" in signature([answer], [[reference]])


def test_the_letters_of_all_references_decide_about_the_tokens():
    answers = ["état", "état"]
    # a-z is not less than half of the letters: the tokens are those of rouge-score.
    half = [["abcde"], ["жзикл"]]
    assert "tok:[a-z0-9]+" in signature(answers, half)
    assert r"tok:\w+" in signature(answers, [*half, ["ж"]])
    assert "tok:[a-z0-9]+" in signature(answers, [["ABCDE 1234567890 ..."]])
    assert "tok:[a-z0-9]+" in signature(["русский"], [["english"]])
    assert "rouge-score-0.1.2" in signature(answers, half)


def test_random_texts_score_as_in_rouge_score():
    scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="pip install rouge-score")
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = scorers.RougeScorer(names)
    draw = random.Random(0)
    words = ["the", "a", "cat", "sat", "on", "mat.", "Dog's", "running", "3.14", "U.S.", "naïve"]

    def write_text() -> str:
        known = words[: draw.randint(2, len(words))]
        return "".join(draw.choice(known) + draw.choice(" \n") for _ in range(draw.randint(0, 30)))

    for _ in range(100):
        answer, accepted = write_text(), [write_text() for _ in range(2)]
        expected = scorer.score_multi(accepted, answer)
        for name in names:
            assert getattr(rouge, name)([answer], [accepted]) == pytest.approx(
                expected[name].fmeasure
            )
