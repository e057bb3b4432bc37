"""Make documents of random token ids from a seed. The first two tokens hold a document's number.

The lengths have a log-normal distribution, as those of chats do. The last 40 % of a document's
tokens are learned, as an answer is. From the numbers a meter sees which documents a trainer really
fed to the model, how often, and whether they were complete.
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
    """The distribution of document lengths in one set.

    Attributes:
        mean_tokens: The mean length before long documents are cut.
        cap_tokens: Longer documents are cut to this length.
        sigma: The log-normal distribution's sigma. With 0 all documents have the mean length.
    """

    name: str
    mean_tokens: int
    cap_tokens: int
    sigma: float

    def draw_lengths(self, count: int, seed: int = 0) -> list[int]:
        """Return `count` document lengths, in tokens."""
        if self.sigma == 0:
            return [self.mean_tokens] * count
        mu = math.log(self.mean_tokens) - self.sigma**2 / 2
        lengths = np.random.default_rng(seed).lognormal(mu, self.sigma, count)
        return [int(length) for length in lengths.clip(MIN_TOKENS, self.cap_tokens)]


# With a mean of 670 tokens, sigma 0.726 gives the chat set a 95th percentile of 1.7k tokens.
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
    """The token ids of all documents.

    The first two ids of a document are its number, as two digits in base `base`.

    Attributes:
        first_digit_id: The id of a high digit 0. The id of a low digit 0 is `base` larger.
    """

    ids: Sequence[list[int]]
    base: int
    first_digit_id: int

    def count_learned(self, number: int) -> int:
        """Return how many tokens of a document are learned."""
        return max(1, round(len(self.ids[number]) * LEARNED_SHARE))

    def to_labelled_rows(self) -> list[dict[str, Any]]:
        """Return labelled rows with `input_ids` and unshifted `labels`, for all contestants."""
        rows = []
        for number, ids in enumerate(self.ids):
            context = len(ids) - self.count_learned(number)
            rows.append({"input_ids": ids, "labels": [IGNORED_LABEL] * context + ids[context:]})
        return rows

    @property
    def mean_attention_span(self) -> float:
        """The mean of the document length over all tokens: E[n^2] / E[n] for lengths n.

        The cost of causal attention per token is proportional to it.
        """
        lengths = np.array([len(ids) for ids in self.ids], dtype=float)
        return float((lengths**2).sum() / lengths.sum())


def make_documents(
    document_set: DocumentSet, vocabulary: int, total_tokens: int, seed: int = 0
) -> Documents:
    """Make documents with at least `total_tokens` tokens, whose ids are below `vocabulary`."""
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
