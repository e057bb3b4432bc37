"""Read a JSON array one element at a time, so that a large file does not fill the memory.

Python's JSON reader needs the whole text. Here it reads single elements from a buffer. If the
buffer ends inside an element, at least as much text is added, and the element is read again. This
costs at most twice the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lora_sft.data.rows.plain_json import parse_json_at

LEAST_READ_CHARACTERS = 2**20
SPACE = " \t\r\n"


class ArrayReader:
    """The elements of a JSON array, in order.

    Attributes:
        lines_before: The number of lines that were removed from the buffer. A JSONDecodeError
            counts lines from the start of the buffer, so add this number.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        """Read the array from `pieces`, which together are its text."""
        self._pieces = pieces
        self._text = ""
        self._position = 0
        self.lines_before = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the elements.

        Raises: ValueError, as `parse_json` does, if the text is not an array, or goes on after it.
        """
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
        """Move to the next character that is not white space, and return it; empty at the end."""
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
        """Remove the part of the buffer that was read, and append more text.

        Append at least as much as is left, so that an element is read again only a few times.

        Returns: Whether there was more text.
        """
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
