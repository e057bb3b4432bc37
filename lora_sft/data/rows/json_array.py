"""Read a JSON array one element at a time, so that a large file does not fill the memory.

Python's JSON reader needs the whole text. Here it reads single elements from a buffer. If the
buffer ends inside an element, at least as much text is added, and the element is read again. This
costs at most twice the work. An element that is too large is passed over piece by piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lora_sft.data.drops import LARGEST_ROW_BYTES, TOO_LARGE
from lora_sft.data.rows.plain_json import parse_json_at

LEAST_READ_CHARACTERS = 2**20
SPACE = " \t\r\n"


class ArrayReader:
    """The elements of a JSON array, in order.

    Attributes:
        lines_before: The number of lines before the buffer. A JSONDecodeError counts lines from the
            start of the buffer, so add this number.
    """

    def __init__(self, pieces: Iterator[str], lines_before: int = 0) -> None:
        """Read the array from `pieces`, which together are its text.

        Args:
            pieces: The text.
            lines_before: The number of lines before the first piece.
        """
        self._pieces = pieces
        self._text = ""
        self._position = 0
        self.lines_before = lines_before

    def __iter__(self) -> Iterator[Any]:
        """Yield the elements. `TOO_LARGE` stands for an element that is too large.

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
                value, end = parse_json_at(self._text, self._position)
            except json.JSONDecodeError:
                if len(self._text) - self._position > LARGEST_ROW_BYTES:
                    if self._pass_over():
                        return TOO_LARGE
                    raise
                if not self._read_more():
                    raise
            else:
                start, self._position = self._position, end
                return TOO_LARGE if _is_too_large(self._text, start, end) else value

    def _pass_over(self) -> bool:
        """Move to the end of an element that does not end in the buffer.

        Returns: Whether there is such an element. If not, the text is not valid JSON.
        """
        ending = _ValueEnding()
        if ending.find(self._text, self._position) is not None:
            return False
        end = None
        while end is None:
            self._position = len(self._text)
            if not self._read_more():
                return False
            end = ending.find(self._text, 0)
        self._position = end
        return True

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


def _is_too_large(text: str, start: int, end: int) -> bool:
    """Return whether a part of a text has too many bytes. A character has at most four."""
    if (end - start) * 4 <= LARGEST_ROW_BYTES:
        return False
    return len(text[start:end].encode()) > LARGEST_ROW_BYTES


class _ValueEnding:
    """Finds the end of a JSON value that goes over several pieces of text."""

    _OUTSIDE = re.compile(r'["\[\]{}]')  # inside an array or an object
    _AT_TOP = re.compile(r'["\[\]{},]')
    _STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def find(self, text: str, position: int) -> int | None:
        """Return where the value ends in the next piece of its text; None if it goes on."""
        while position < len(text):
            if self._in_string:
                position = self._read_string(text, position)
                if not self._in_string and self._depth == 0:
                    return position
                continue
            mark = (self._OUTSIDE if self._depth else self._AT_TOP).search(text, position)
            if mark is None:
                return None
            position = mark.end()
            if mark.group() == '"':
                self._in_string = True
            elif mark.group() in "[{":
                self._depth += 1
            elif self._depth == 0:  # the end of the array, or the next element
                return mark.start()
            else:
                self._depth -= 1
                if self._depth == 0:
                    return position
        return None

    def _read_string(self, text: str, position: int) -> int:
        """Return where the string ends, or the end of the text if the string goes on."""
        if self._is_escaped:
            position, self._is_escaped = position + 1, False
        match = self._STRING.match(text, position)
        assert match is not None, "the pattern also matches an empty text"
        position = match.end()
        if position < len(text):
            self._is_escaped = text[position] == "\\"
            self._in_string = self._is_escaped
            position += 1
        return position
