"""Prompts and reference answers out of tokenised rows.

A row's labels say where the model must speak (`labels[i] != IGNORED_LABEL`), so the prompt of an
answer is everything before it and the reference is the learned span itself: evaluation asks exactly
what training taught, with no second rendering that could differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_sft.data.labelled_row import IGNORED_LABEL


@dataclass(frozen=True)
class Question:
    """One answer to give: the ids before it and the ids that were learned (stop included)."""

    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]


def find_learned_spans(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of learned tokens, `end` exclusive."""
    start = None
    for position, label in enumerate([*labels, IGNORED_LABEL]):
        if label != IGNORED_LABEL and start is None:
            start = position
        elif label == IGNORED_LABEL and start is not None:
            yield start, position
            start = None


def make_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """One question for each learned span of each row."""
    return [
        Question(tuple(row["input_ids"][:start]), tuple(row["input_ids"][start:end]))
        for row in rows
        for start, end in find_learned_spans(row["labels"])
    ]
