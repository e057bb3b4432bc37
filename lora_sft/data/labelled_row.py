"""A labelled row: token ids with their labels, ready for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The label of a token that is not learned. Cross-entropy in torch ignores -100.
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Turn:
    """One learned span of a labelled row.

    Attributes:
        role: The role of the message, or a word such as `text` for people to read.
        message: The index of the message in the conversation, from 0; None outside conversations.
        start: The position of the first learned token.
        end: The position after the last learned token. A chat turn ends with its stop token.
    """

    role: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True)
class LabelledRow:
    """Token ids and their labels. The labels are not shifted.

    Attributes:
        labels: `input_ids[i]` if token i is learned, else `IGNORED_LABEL`.
        turns: The learned spans.
        built: How the ids were made. `rendered`: the whole text was tokenised at once.
            `boundary`: prompt and target were tokenised separately, because a token would have
            spanned both. `spliced`: the text was put together, because the template does not
            render the text that is served. `escaped`: special tokens in the content were tokenised
            as ordinary text. `given`: the source row held the ids.
    """

    input_ids: list[int]
    labels: list[int]
    turns: tuple[Turn, ...]
    built: str = "rendered"

    @property
    def num_target_tokens(self) -> int:
        """The number of learned tokens."""
        return sum(turn.end - turn.start for turn in self.turns)


def make_labelled_row(
    input_ids: list[int], turns: Sequence[Turn], built: str = "rendered"
) -> LabelledRow:
    """Return the labelled row whose learned tokens are exactly those of `turns`.

    The first token is never learned, because no token before it can predict it.
    """
    labels = [IGNORED_LABEL] * len(input_ids)
    kept = [Turn(turn.role, turn.message, max(turn.start, 1), turn.end) for turn in turns]
    kept = [turn for turn in kept if turn.start < turn.end]
    for turn in kept:
        labels[turn.start : turn.end] = input_ids[turn.start : turn.end]
    return LabelledRow(input_ids, labels, tuple(kept), built)
