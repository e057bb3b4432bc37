"""Metrics of token classification: whole entities, and single tokens.

A row is a list of BIO tags: `B-` and a type begins an entity, `I-` and the type continues it, and
`O` is outside. An entity is right if its type, its first token and its last token are those of the
reference. The counts are over the entities of all rows together (micro average).

An answer may have fewer tags than its reference, because a long text was cut. The entities of the
reference beyond the cut count as missed. An answer of None has no tags.

Source:
    Tjong Kim Sang and De Meulder (2003), "Introduction to the CoNLL-2003 shared task",
    https://aclanthology.org/W03-0419, and its program conlleval,
    https://www.cnts.ua.ac.be/conll2000/chunking/conlleval.txt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Tags: TypeAlias = Sequence[str]
Span: TypeAlias = tuple[int, int, str]  # first token, the token after the last, type


def f1(answers: Sequence[Tags | None], references: Sequence[Tags]) -> float:
    """Return 2PR / (P + R) of the entities, from 0 to 1, where P is precision and R is recall.

    The figure is 0 if neither the answers nor the references have an entity.
    """
    counts = _count_entities(answers, references)
    return _divide(2 * counts.right, counts.answered + counts.expected)


def precision(answers: Sequence[Tags | None], references: Sequence[Tags]) -> float:
    """Return the share of answered entities that are right, or 0 if no entity is answered."""
    counts = _count_entities(answers, references)
    return _divide(counts.right, counts.answered)


def recall(answers: Sequence[Tags | None], references: Sequence[Tags]) -> float:
    """Return the share of expected entities that are answered, or 0 if no entity is expected."""
    counts = _count_entities(answers, references)
    return _divide(counts.right, counts.expected)


def token_accuracy(answers: Sequence[Tags | None], references: Sequence[Tags]) -> float:
    """Return the share of tokens whose tag is that of the reference, from 0 to 1.

    A token beyond the end of a cut answer has no tag, so it is wrong.
    """
    right = sum(
        tag == expected
        for answer, reference in zip(answers, references, strict=True)
        for tag, expected in zip(answer or (), reference, strict=False)
    )
    return _divide(right, sum(map(len, references)))


class _Counts(NamedTuple):
    right: int
    answered: int
    expected: int


def _count_entities(answers: Sequence[Tags | None], references: Sequence[Tags]) -> _Counts:
    right = answered = expected = 0
    for answer, reference in zip(answers, references, strict=True):
        found, true = _find_spans(answer or ()), _find_spans(reference)
        right += len(found & true)
        answered += len(found)
        expected += len(true)
    return _Counts(right, answered, expected)


def _find_spans(tags: Tags) -> set[Span]:
    """Return the entities of a row.

    An `I-` that continues nothing starts an entity, as in conlleval: after `O`, at the beginning of
    the row, or after a tag of another type.
    """
    spans = set()
    start, kind = None, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own_kind = tag.partition("-")
        if start is not None and prefix == "I" and own_kind == kind:
            continue
        if start is not None:
            spans.add((start, place, kind))
        start, kind = (place if prefix in ("B", "I") else None), own_kind
    return spans


def _divide(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
