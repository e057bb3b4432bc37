"""Metrics of question answering, as the program of SQuAD 2.0 computes them.

A reference is the list of accepted answers. The list is empty if the question has no answer in its
context. The score of a row is the best over its accepted answers. Where there is none, an answer is
right if it normalises to nothing, or if it equals the text `no_answer`. An answer of None is always
wrong.

Normalisation makes a text lower case. It removes punctuation, the articles "a", "an" and "the", and
extra white space. Tokens are the words between white space.

Sources:
    Rajpurkar et al. (2018), "Know what you don't know: unanswerable questions for SQuAD",
    https://aclanthology.org/P18-2124, and its program evaluate-v2.0.py,
    https://rajpurkar.github.io/SQuAD-explorer/
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeAlias

_Score: TypeAlias = Callable[[str, str], float]  # (normalised answer, normalised accepted answer)
_REMOVED = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def f1(
    answers: Sequence[str | None], references: Sequence[Sequence[str]], *, no_answer: str
) -> float:
    """Return the mean F1 between the tokens of the answer and of an accepted answer, 0 to 1."""
    return fmean(_score_rows(_token_f1, answers, references, no_answer))


def exact_match(
    answers: Sequence[str | None], references: Sequence[Sequence[str]], *, no_answer: str
) -> float:
    """Return the share of answers that equal an accepted answer after normalisation, 0 to 1."""
    return fmean(_score_rows(_is_equal, answers, references, no_answer))


def HasAns_f1(
    answers: Sequence[str | None], references: Sequence[Sequence[str]], *, no_answer: str
) -> float:
    """Return `f1` over the questions that have an answer. At least one question must have one."""
    scores = _score_rows(_token_f1, answers, references, no_answer)
    return fmean(score for score, accepted in zip(scores, references, strict=True) if accepted)


def HasAns_exact(
    answers: Sequence[str | None], references: Sequence[Sequence[str]], *, no_answer: str
) -> float:
    """Return `exact_match` over the questions that have an answer. At least one must have one."""
    scores = _score_rows(_is_equal, answers, references, no_answer)
    return fmean(score for score, accepted in zip(scores, references, strict=True) if accepted)


def NoAns_exact(
    answers: Sequence[str | None], references: Sequence[Sequence[str]], *, no_answer: str
) -> float:
    """Return `exact_match` over the questions without an answer. At least one must have none."""
    scores = _score_rows(_is_equal, answers, references, no_answer)
    return fmean(score for score, accepted in zip(scores, references, strict=True) if not accepted)


def _score_rows(
    score: _Score,
    answers: Sequence[str | None],
    references: Sequence[Sequence[str]],
    no_answer: str,
) -> list[float]:
    """Return the best score of each row over its accepted answers."""
    pairs = zip(answers, references, strict=True)
    return [_score_row(score, answer, accepted, no_answer) for answer, accepted in pairs]


def _score_row(score: _Score, answer: str | None, accepted: Sequence[str], no_answer: str) -> float:
    """Return the best score of an answer over the accepted answers of its row.

    As in the program of SQuAD 2.0, accepted answers that normalise to nothing are dropped. If all
    are dropped, only an answer that normalises to nothing is right.
    """
    if answer is None:
        return 0.0
    text = _normalize(answer)
    if not accepted:
        return float(text in ("", _normalize(no_answer)))
    expected = [normal for each in accepted if (normal := _normalize(each))] or [""]
    return max(score(text, each) for each in expected)


def _is_equal(answer: str, accepted: str) -> float:
    return float(answer == accepted)


def _token_f1(answer: str, accepted: str) -> float:
    """Return 2 x common / (answered + expected) tokens. Two texts without tokens are equal."""
    found, expected = answer.split(), accepted.split()
    if not found or not expected:
        return float(found == expected)
    common = (Counter(found) & Counter(expected)).total()
    return 2 * common / (len(found) + len(expected))


def _normalize(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_REMOVED)).split())
