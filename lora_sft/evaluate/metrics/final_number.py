"""The share of answers whose final number is that of the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from statistics import fmean

# A "-" is a sign only where it follows no letter, digit or bracket: "10-5" holds 10 and 5.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-−])?[$€£]?"
    r"(?P<number>(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?)"
)
_MARKED_NUMBER = re.compile(rf"####\W{{0,8}}?{_NUMBER.pattern}")


def final_number(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of answers whose final number equals that of their reference, from 0 to 1.

    The final number is the one after `####`, else the last number in the text. Commas are removed,
    and the numbers are compared as numbers: 1,200.0 equals 1200. A text without a number is wrong.

    Source:
        Cobbe et al. (2021), "Training verifiers to solve math word problems",
        https://arxiv.org/abs/2110.14168, and its file grade_school_math/dataset.py,
        https://github.com/openai/grade-school-math
    """
    return fmean(
        (number := _find_final_number(answer)) is not None
        and number == _find_final_number(reference)
        for answer, reference in zip(answers, references, strict=True)
    )


def _find_final_number(text: str) -> Decimal | None:
    """Return the number after the first `####`, else the last number, or None."""
    found = _MARKED_NUMBER.search(text) or next(reversed([*_NUMBER.finditer(text)]), None)
    if found is None:
        return None
    number = Decimal(found["number"].replace(",", ""))
    return -number if found["sign"] else number
