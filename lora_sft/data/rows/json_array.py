"""Read a JSON array element by element, so that a large file is never in memory whole.

Python's reader takes a text at once. Here it takes an element at a time from a buffer; where the
buffer ends inside the element, as much again is read and the element is tried anew, which costs at
most twice the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lora_sft.data.rows.plain_json import parse_json_at

LEAST_READ_CHARACTERS = 2**20
SPACE = " \t\r\n"


class ArrayReader:
    """The elements of the array that `pieces` are the text of, in order.

    `lines_before` are the lines of the text that the buffer no longer holds: a fault's line is
    counted in the buffer.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._position = 0
        self.lines_before = 0

    def __iter__(self) -> Iterator[Any]:
        """Raises: ValueError as `parse_json` does, where the text is no array or goes on after."""
        self._take("[")
        if self._peek() != "]":
            yield self._take_value()
            while self._peek() == ",":
                self._take(",")
                self._peek()
                yield self._take_value()
        self._take("]")
        if self._peek():
            raise json.JSONDecodeError("Extra data", self._text, self._position)

    def _peek(self) -> str:
        """The next character that is no space, which is now at the position; empty at the end."""
        while True:
            while self._position < len(self._text):
                if self._text[self._position] not in SPACE:
                    return self._text[self._position]
                self._position += 1
            if not self._read_more():
                return ""

    def _take(self, expected: str) -> None:
        if self._peek() != expected:
            message = f"Expecting {expected!r}" if expected != "]" else "Expecting ',' delimiter"
            raise json.JSONDecodeError(message, self._text, self._position)
        self._position += 1

    def _take_value(self) -> Any:
        while True:
            try:
                value, self._position = parse_json_at(self._text, self._position)
            except json.JSONDecodeError:
                if not self._read_more():
                    raise
            else:
                return value

    def _read_more(self) -> bool:
        """Let go of what was taken and read as much as is left, at least; whether more came."""
        more = next(self._pieces, None)
        if more is None:
            return False
        rest = self._text[self._position :]
        pieces, wanted = [rest, more], max(len(rest), LEAST_READ_CHARACTERS) - len(more)
        while wanted > 0 and (more := next(self._pieces, None)) is not None:
            pieces.append(more)
            wanted -= len(more)
        self.lines_before += self._text.count("\n", 0, self._position)
        self._text, self._position = "".join(pieces), 0
        return True
