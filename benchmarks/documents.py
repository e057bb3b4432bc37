"""Seeded documents of token ids, each with its number written into its first two tokens.

Lengths are log-normal, as chats are; 40 % of each document is learned (its end, as an answer).
The number lets a meter see which documents a trainer really fed, how often and how completely,
without asking the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEARNED_SHARE = 0.4
IGNORED_LABEL = -100
FIRST_BODY_ID = 8  # ids below are special
MIN_TOKENS = 16


@dataclass(frozen=True)
class DocumentSet:
    """How long the documents of a set are; `sigma` 0: all of the mean's length."""

    name: str
    mean_tokens: int  # before the cap
    cap_tokens: int
    sigma: float

    def draw_lengths(self, count: int, seed: int = 0) -> list[int]:
        """`count` document lengths in tokens."""
        if self.sigma == 0:
            return [self.mean_tokens] * count
        mu = math.log(self.mean_tokens) - self.sigma**2 / 2
        lengths = np.random.default_rng(seed).lognormal(mu, self.sigma, count)
        return [int(length) for length in lengths.clip(MIN_TOKENS, self.cap_tokens)]


# sigma 0.726 gives the chat set a 95th percentile of 1.7k tokens at a mean of 670.
DOCUMENT_SETS = {
    each.name: each
    for each in (
        DocumentSet("chat", 670, 2048, 0.726),
        DocumentSet("short", 150, 2048, 0.726),
        DocumentSet("dense", 4096, 4096, 0.0),
        DocumentSet("toy", 40, 96, 0.726),
    )
}


@dataclass(frozen=True)
class Documents:
    """Token ids by document, and how to read a document's number from its first two ids."""

    ids: Sequence[list[int]]
    base: int  # two digits of this base
    first_digit_id: int  # high digits from here, low digits `base` ids above

    def count_learned(self, number: int) -> int:
        """How many tokens of a document are learned."""
        return max(1, round(len(self.ids[number]) * LEARNED_SHARE))

    def to_labelled_rows(self) -> list[dict[str, Any]]:
        """Labelled rows (`input_ids`, unshifted `labels`), as every contestant takes them."""
        rows = []
        for number, ids in enumerate(self.ids):
            context = len(ids) - self.count_learned(number)
            rows.append({"input_ids": ids, "labels": [IGNORED_LABEL] * context + ids[context:]})
        return rows

    @property
    def mean_attention_span(self) -> float:
        """E[n^2] / E[n]: the length that the mean token's causal attention pays for."""
        lengths = np.array([len(ids) for ids in self.ids], dtype=float)
        return float((lengths**2).sum() / lengths.sum())


def make_documents(
    document_set: DocumentSet, vocabulary: int, total_tokens: int, seed: int = 0
) -> Documents:
    """At least `total_tokens` of documents with ids below `vocabulary`."""
    base = 128 if vocabulary >= 8192 else 16
    mean = min(document_set.mean_tokens, document_set.cap_tokens)
    count = min(base * base, math.ceil(total_tokens / mean * 1.3) + 8)
    first_digit = vocabulary - 2 * base
    random = np.random.default_rng([seed, vocabulary])
    documents = []
    for number, length in enumerate(document_set.draw_lengths(count, seed)):
        body = random.integers(FIRST_BODY_ID, first_digit, length - 2).tolist()
        header = [first_digit + number // base, first_digit + base + number % base]
        documents.append([*header, *body])
    return Documents(documents, base, first_digit)
