"""Metrics of summarization: ROUGE as rouge-score 0.1.2 computes it without stemming, from 0 to 1.

Each figure is the mean over rows of an F-measure, 2PR / (P + R). P is the share of the answer that
occurs in the reference, and R is the share of the reference that occurs in the answer. A reference
is the list of accepted summaries of a row, and the best one counts. An answer of None scores 0.

Tokens are the matches of `[a-z0-9]+` in the lower-cased text. Such tokens do not exist in most
other scripts. So where more than half of the letters of all references are outside a-z, tokens are
the matches of `\\w+`: runs of Unicode word characters. A run of Chinese or Japanese characters is
then one token.

Sources:
    Lin (2004), "ROUGE: a package for automatic evaluation of summaries",
    https://aclanthology.org/W04-1013
    https://github.com/google-research/google-research/tree/master/rouge
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import TypeAlias

Tokens: TypeAlias = list[str]
_Score: TypeAlias = Callable[[str, str, re.Pattern[str]], float]  # (answer, reference, token)

LATIN_TOKEN = re.compile("[a-z0-9]+")
UNICODE_TOKEN = re.compile(r"\w+")


def rouge1(answers: Sequence[str | None], references: Sequence[Sequence[str]]) -> float:
    """Return the F-measure of common tokens, from 0 to 1."""
    return _average(partial(_score_ngrams, length=1), answers, references)


def rouge2(answers: Sequence[str | None], references: Sequence[Sequence[str]]) -> float:
    """Return the F-measure of common pairs of neighbouring tokens, from 0 to 1."""
    return _average(partial(_score_ngrams, length=2), answers, references)


def rougeL(answers: Sequence[str | None], references: Sequence[Sequence[str]]) -> float:
    """Return the F-measure of the longest common subsequence of tokens, from 0 to 1."""
    return _average(_score_sequence, answers, references)


def rougeLsum(answers: Sequence[str | None], references: Sequence[Sequence[str]]) -> float:
    """Return the F-measure of the longest common subsequences of lines, from 0 to 1.

    Each line of the reference is compared with each line of the answer. The union of these
    subsequences counts, and each token of a text counts only once.

    Source:
        Lin (2004), section 3.2. Only the program counts each token once.
    """
    return _average(_score_lines, answers, references)


def signature(answers: Sequence[str | None], references: Sequence[Sequence[str]]) -> str:
    """Return how the figures were computed: the tokens, and the version that they agree with."""
    token = _choose_token(references)
    return f"ROUGE|f-measure|like:rouge-score-0.1.2|stemmer:no|case:lc|tok:{token.pattern}"


def _average(
    score: _Score, answers: Sequence[str | None], references: Sequence[Sequence[str]]
) -> float:
    """Return the mean over rows of the best score over the accepted summaries of each row."""
    token = _choose_token(references)
    return fmean(
        max(score(answer or "", each, token) for each in accepted)
        for answer, accepted in zip(answers, references, strict=True)
    )


def _choose_token(references: Sequence[Sequence[str]]) -> re.Pattern[str]:
    """Return the expression of a token that suits the script of the references."""
    letters = Counter(
        "a" <= letter <= "z"
        for accepted in references
        for text in accepted
        for letter in text.lower()
        if letter.isalpha()
    )
    return UNICODE_TOKEN if letters[False] > letters[True] else LATIN_TOKEN


def _tokenize(text: str, token: re.Pattern[str]) -> Tokens:
    return token.findall(text.lower())


def _score_ngrams(answer: str, reference: str, token: re.Pattern[str], *, length: int) -> float:
    found = _count_ngrams(_tokenize(answer, token), length)
    expected = _count_ngrams(_tokenize(reference, token), length)
    return _f_measure((found & expected).total(), found.total(), expected.total())


def _count_ngrams(tokens: Tokens, length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(length)), strict=False))


def _score_sequence(answer: str, reference: str, token: re.Pattern[str]) -> float:
    found, expected = _tokenize(answer, token), _tokenize(reference, token)
    common = _measure_subsequences(expected, found)[-1][-1]
    return _f_measure(common, len(found), len(expected))


def _score_lines(answer: str, reference: str, token: re.Pattern[str]) -> float:
    found = [_tokenize(line, token) for line in answer.split("\n")]
    expected = [_tokenize(line, token) for line in reference.split("\n")]
    in_answer = Counter(each for line in found for each in line)
    in_reference = Counter(each for line in expected for each in line)
    common: Counter[str] = Counter()
    for line in expected:
        places = set().union(*(_find_subsequence(line, other) for other in found))
        common.update(line[place] for place in places)
    # A token counts at most as often as it occurs in each text.
    hits = (common & in_answer & in_reference).total()
    return _f_measure(hits, in_answer.total(), in_reference.total())


def _measure_subsequences(expected: Tokens, found: Tokens) -> list[list[int]]:
    """Return a table: entry [i][j] is the length of the longest common subsequence.

    It is that of the first i tokens of the reference and the first j tokens of the answer.
    """
    table = [[0] * (len(found) + 1)]
    for wanted in expected:
        above, row = table[-1], [0]
        for place, token in enumerate(found):
            row.append(above[place] + 1 if token == wanted else max(above[place + 1], row[-1]))
        table.append(row)
    return table


def _find_subsequence(expected: Tokens, found: Tokens) -> set[int]:
    """Return the places in the reference of one longest common subsequence.

    There may be several. This function takes the same one as rouge-score: from the end of the table
    it moves up where both ways are equally long.
    """
    table = _measure_subsequences(expected, found)
    places = set()
    i, j = len(expected), len(found)
    while i and j:
        if expected[i - 1] == found[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


def _f_measure(common: int, found: int, expected: int) -> float:
    """Return 2PR / (P + R) with P = common / found and R = common / expected, or 0."""
    return 2 * common / (found + expected) if common else 0.0
