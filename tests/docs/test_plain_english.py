"""Constructions that make a reader read twice stay rare, in code and pages alike."""

from __future__ import annotations

import pytest

from tests.docs.plain_english import PATTERNS, Pattern, Sentence, list_sentences

MOST_PER_HUNDRED_SENTENCES = 1.0
LEAST_SENTENCES = 4_000  # a reader that finds too few has lost a kind of text
# A sentence may have the words of a pattern and still be plain. None of these is a construction.
PLAIN_ALL_THE_SAME: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return list_sentences()


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_pattern_finds_the_old_sentence_and_no_pattern_finds_the_plain_one(pattern: Pattern):
    assert pattern.finds(pattern.old)
    assert [each.name for each in PATTERNS if each.finds(pattern.plain)] == []


def test_odd_constructions_are_rare(sentences):
    assert len(sentences) > LEAST_SENTENCES
    odd = [
        f"{sentence}  [{pattern.name}]"
        for sentence in sentences
        for pattern in PATTERNS
        if sentence.text not in PLAIN_ALL_THE_SAME and pattern.finds(sentence.text)
    ]
    assert len(odd) * 100 <= MOST_PER_HUNDRED_SENTENCES * len(sentences), "\n".join(odd)


def test_every_kind_of_text_is_read(sentences):
    texts = {(sentence.file, sentence.text) for sentence in sentences}
    assert ("lora_sft/shown_text.py", "This file imports no other part of the package.") in texts
    for folder in ("lora_sft/", "tests/", "tools/", "benchmarks/", "docs/", "recipes/"):
        assert sum(file.startswith(folder) for file, _ in texts) > 50, folder
