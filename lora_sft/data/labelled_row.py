"""A labelled row, ready for training: token ids, and which of them are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IGNORED_LABEL = -100  # of a token that is not learned; torch's cross-entropy leaves it out


@dataclass(frozen=True)
class Turn:
    """One learned span, in token positions; `end` is exclusive and takes in the stop token.

    `message` counts from 0 in the converted conversation; it is None for text.
    """

    role: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True)
class LabelledRow:
    """Ids and unshifted labels: `labels[i] == input_ids[i]` where learned, else `IGNORED_LABEL`.

    `built` says how the ids came about: `rendered` (one tokenisation of the whole text),
    `boundary` (prompt and target apart, because a token would have crossed their border),
    `spliced` (the template does not render what is served), `escaped` (special tokens of the
    content as ordinary text) or `given` (the source row was tokens).
    """

    input_ids: list[int]
    labels: list[int]
    turns: tuple[Turn, ...]
    built: str = "rendered"

    @property
    def num_target_tokens(self) -> int:
        """How many tokens of the labelled row are learned."""
        return sum(turn.end - turn.start for turn in self.turns)


def make_labelled_row(
    input_ids: list[int], turns: Sequence[Turn], built: str = "rendered"
) -> LabelledRow:
    """Label exactly the turns. The first token has nothing before it and is never learned."""
    labels = [IGNORED_LABEL] * len(input_ids)
    kept = [Turn(turn.role, turn.message, max(turn.start, 1), turn.end) for turn in turns]
    kept = [turn for turn in kept if turn.start < turn.end]
    for turn in kept:
        labels[turn.start : turn.end] = input_ids[turn.start : turn.end]
    return LabelledRow(input_ids, labels, tuple(kept), built)
