"""The metric `final_number`."""

from __future__ import annotations

import pytest

from lora_sft.evaluate.metrics.final_number import final_number


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("She sold 48 + 24 = 72 clips.\n#### 72", "#### 72"),
        ("The answer is 72.", "She sold 24.\n#### 72"),
        ("#### 1,200", "1200"),
        ("#### $1,200.50", "1200.5"),
        ("It costs 1,234,567 euros, he said.", "#### 1234567"),
        ("72.0", "72"),
        (".5", "0.50"),
        ("2.5e3", "2500"),
        ("#### -5", "-5"),
        ("It is −5 degrees", "-5"),
        ("He owes -$5", "-5"),
        ("#### **42**", "42"),
        ("####42", "42"),
        ("####\n42", "42"),
        ("7 days, so \\boxed{42}", "42"),
        ("10-5", "5"),
        ("(3)-4", "4"),
        ("so 10 - 5 = 5", "5"),
        ("#### 42\n\nQuestion: 7 or 8?", "42"),
        ("#### Step 1\n6 x 7 is 42", "42"),
        ("42 and then ####", "42"),
        ("#### 007", "7"),
    ],
)
def test_equal_numbers_are_right(answer, reference):
    assert final_number([answer], [reference]) == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("#### 73", "#### 72"),
        ("72 or 73", "72"),
        ("#### 7\nmore: 72", "72"),
        ("-72", "72"),
        ("72.01", "72"),
        ("1.200", "1200"),
        ("seventy-two", "72"),
        ("", "72"),
        ("no number", "none either"),
        ("", ""),
    ],
)
def test_other_numbers_and_texts_without_a_number_are_wrong(answer, reference):
    assert final_number([answer], [reference]) == 0


def test_the_figure_is_the_share_of_rows():
    assert final_number(["1", "2", "3", "none"], ["1", "2", "4", "5"]) == 0.5


def test_a_long_answer_of_number_signs_takes_no_long_time():
    assert final_number(["#" * 200_000], ["1"]) == 0
    assert final_number(["1," * 100_000], ["1"]) == 0
