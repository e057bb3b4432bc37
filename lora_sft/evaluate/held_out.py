"""Make prompts and reference answers from labelled rows.

The labels of a row show where the model must answer (`labels[i] != IGNORED_LABEL`). The tokens
before a learned span are the prompt, and the span is the reference. So evaluation tests exactly
what training taught. The row is not rendered a second time, which could give other tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_sft.data.labelled_row import IGNORED_LABEL


@dataclass(frozen=True)
class Question:
    """One answer to give.

    Attributes:
        prompt_ids: The token ids before the answer.
        reference_ids: The learned token ids of the answer, with the stop token.
    """

    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]


def find_learned_spans(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of each span of learned tokens. `end` is exclusive."""
    start = None
    for position, label in enumerate([*labels, IGNORED_LABEL]):
        if label != IGNORED_LABEL and start is None:
            start = position
        elif label == IGNORED_LABEL and start is not None:
            yield start, position
            start = None


def make_questions(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Return one question per learned span of each row."""
    return [
        Question(tuple(row["input_ids"][:start]), tuple(row["input_ids"][start:end]))
        for row in rows
        for start, end in find_learned_spans(row["labels"])
    ]
