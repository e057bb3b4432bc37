"""The metrics of token classification, against conlleval's rules and an oracle.

The oracle reads spans in another way: it writes a row as text and searches it with an expression.
"""

from __future__ import annotations

import random
import re

import pytest

from lora_sft.evaluate.metrics.entity_spans import (
    _find_spans,
    f1,
    precision,
    recall,
    token_accuracy,
)


def list_spans(tags: str) -> list[tuple[int, int, str]]:
    return sorted(_find_spans(tags.split()))


def find_spans_by_expression(tags: list[str]) -> set[tuple[int, int, str]]:
    """Return the spans: a `B-` or `I-` of a type, and all `I-` of that type which follow it."""
    text = "".join(f"{tag} " for tag in tags)
    found = re.finditer(r"[BI]-(\S+) (?:I-\1 )*", text)
    return {
        (text[: each.start()].count(" "), text[: each.end()].count(" "), each[1]) for each in found
    }


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("B-PER B-PER", [(0, 1, "PER"), (1, 2, "PER")]),  # two neighbours of one type
        ("I-PER I-PER O", [(0, 2, "PER")]),  # an I- at the beginning of the row
        ("O I-PER B-PER I-PER", [(1, 2, "PER"), (2, 4, "PER")]),  # an I- after O
        ("B-PER I-LOC I-LOC", [(0, 1, "PER"), (1, 3, "LOC")]),  # an I- after another type
        ("I-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("B-creative-work I-creative-work", [(0, 2, "creative-work")]),
        ("B-PER I-PERSON", [(0, 1, "PER"), (1, 2, "PERSON")]),
    ],
)
def test_spans_follow_the_rule_of_conlleval(tags, spans):
    assert list_spans(tags) == spans
    assert sorted(find_spans_by_expression(tags.split())) == spans


@pytest.mark.parametrize("seed", range(20))
def test_random_tags_give_the_spans_and_figures_of_the_oracle(seed):
    draw = random.Random(seed)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    references, answers = (
        [draw.choices(tags, k=draw.randint(0, 12)) for _ in range(30)] for _ in range(2)
    )
    answers = [(answer * 9)[: len(row)] for answer, row in zip(answers, references, strict=True)]
    found = [find_spans_by_expression(row) for row in answers]
    true = [find_spans_by_expression(row) for row in references]
    assert [_find_spans(row) for row in references] == true
    right = sum(len(a & b) for a, b in zip(found, true, strict=True))
    p, r = right / sum(map(len, found)), right / sum(map(len, true))
    assert precision(answers, references) == pytest.approx(p)
    assert recall(answers, references) == pytest.approx(r)
    assert f1(answers, references) == pytest.approx(2 * p * r / (p + r))


def test_an_entity_is_right_only_with_its_type_and_both_ends():
    references = [["B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG"]]
    answers = [["B-PER", "I-PER", "O", "B-ORG", "O", "O"]]
    # Right: PER. Answered: PER, ORG. Expected: PER, LOC, ORG.
    assert precision(answers, references) == 1 / 2
    assert recall(answers, references) == 1 / 3
    assert f1(answers, references) == pytest.approx(2 / 5)
    assert token_accuracy(answers, references) == pytest.approx(4 / 6)
    for part in ("B-PER O O O O O", "O I-PER O O O O", "B-PER I-PER I-PER O O O"):
        assert f1([part.split()], references) == 0, part


def test_the_counts_are_of_all_rows_together():
    references = [["B-A"], ["B-A", "B-A", "B-A"]]
    assert recall([["B-A"], ["O", "O", "O"]], references) == 1 / 4


def test_entities_beyond_the_end_of_a_cut_answer_are_missed():
    references = [["O", "B-PER", "I-PER", "O", "B-LOC"]]
    assert recall([["O", "B-PER", "I-PER"]], references) == 1 / 2
    assert precision([["O", "B-PER", "I-PER"]], references) == 1
    assert recall([["O", "B-PER"]], references) == 0  # the cut goes through the entity
    assert token_accuracy([["O", "B-PER"]], references) == 2 / 5


def test_an_answer_of_none_is_wrong_for_each_token():
    references = [["B-PER", "O"], ["O", "B-LOC"]]
    answers = [None, ["O", "B-LOC"]]
    assert recall(answers, references) == 1 / 2
    assert token_accuracy(answers, references) == 1 / 2


def test_rows_without_any_entity_score_zero():
    outside = [["O", "O"]]
    assert f1(outside, outside) == precision(outside, outside) == recall(outside, outside) == 0
    assert token_accuracy(outside, outside) == 1
