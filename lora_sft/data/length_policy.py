"""What happens to a row longer than `max_length`: left out, cut at its end, or an error.

A cut keeps the start and adds nothing, so it never teaches a stop in the middle of a sentence,
and a row that would be left without a learned token is left out.
"""

from __future__ import annotations

from lora_sft.data.supervised_row import SupervisedRow, Turn, make_supervised_row
from lora_sft.errors import DataError


def fit_length(
    row: SupervisedRow, max_length: int, overlong: str, where: str
) -> SupervisedRow | None:
    """The row as it fits, or None where it has to be left out.

    Raises: DataError where `overlong` is `error`.
    """
    if len(row.input_ids) <= max_length:
        return row
    if overlong == "error":
        raise DataError(
            f"the row has {len(row.input_ids)} tokens, max_length is {max_length}",
            where,
            f"set data.max_length: {len(row.input_ids)}, or data.overlong: drop",
        )
    return _keep_start(row, max_length) if overlong == "keep_start" else None


def _keep_start(row: SupervisedRow, max_length: int) -> SupervisedRow | None:
    turns = [
        Turn(turn.role, turn.message, turn.start, min(turn.end, max_length))
        for turn in row.turns
        if turn.start < max_length
    ]
    if not turns:
        return None
    return make_supervised_row(row.input_ids[:max_length], turns, row.built)
