"""Drop, cut, split or refuse a labelled row that is longer than `max_length`.

`data.overlong` chooses. A cut adds no tokens, so it never teaches the model to stop in the middle
of a sentence. A part without a learned token is dropped.
"""

from __future__ import annotations

from lora_sft.data.labelled_row import LabelledRow, Turn, make_labelled_row
from lora_sft.errors import DataError


def fit_length(
    row: LabelledRow, max_length: int, overlong: str, where: str
) -> tuple[LabelledRow, ...]:
    """Return the labelled row, its parts that fit, or an empty tuple if it is dropped.

    Raises: DataError if the row is too long and `overlong` is `error`.
    """
    num_tokens = len(row.input_ids)
    if num_tokens <= max_length:
        return (row,)
    if overlong == "error":
        raise DataError(
            f"the row has {num_tokens} tokens, but max_length is {max_length}",
            where,
            f"set data.max_length: {num_tokens}, or data.overlong: drop",
        )
    if overlong == "drop":
        return ()
    starts = range(0, num_tokens, max_length) if overlong == "split" else [0]
    parts = (_cut(row, start, min(start + max_length, num_tokens)) for start in starts)
    return tuple(part for part in parts if part.turns)


def _cut(row: LabelledRow, start: int, end: int) -> LabelledRow:
    """Return the tokens [start, end) of a labelled row, with their labels."""
    turns = [
        Turn(turn.role, turn.message, max(turn.start, start) - start, min(turn.end, end) - start)
        for turn in row.turns
        if turn.start < end and turn.end > start
    ]
    return make_labelled_row(row.input_ids[start:end], turns, row.built)
