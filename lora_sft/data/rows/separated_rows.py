"""Read source rows from CSV and TSV files. The first line holds the column names.

A quoted field may hold line breaks, so a row may have several lines. A row that is too large is
passed over, and its quotes show where it ends.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, NoReturn

from lora_sft.data.drops import LARGEST_ROW_BYTES, TOO_LARGE
from lora_sft.data.rows.data_files import DataFile
from lora_sft.data.rows.file_rows import NumberedRow, refuse_empty, refuse_repeated_columns
from lora_sft.data.rows.text_lines import LINE_END, decode_line, read_pieces
from lora_sft.errors import DataError

QUOTE = b'"'


def read_csv(file: DataFile) -> Iterator[NumberedRow]:
    """Yield comma-separated rows. The first line holds the column names."""
    return _read_separated(file, ",")


def read_tsv(file: DataFile) -> Iterator[NumberedRow]:
    """Yield tab-separated rows. The first line holds the column names."""
    return _read_separated(file, "\t")


def _read_separated(file: DataFile, delimiter: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(2 * LARGEST_ROW_BYTES)  # `_RowLines` stops before
    lines = _RowLines(file, delimiter)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    empty = True
    try:
        header = _read_header(file, reader)
        while True:
            lines.begin_row()
            try:
                fields = next(reader)
            except StopIteration:
                break
            except _RowTooLargeError:
                empty = False
                yield lines.first_line, TOO_LARGE
                continue
            if fields:
                empty = False
                yield lines.first_line, _as_row(fields, header, lines.where)
    except csv.Error as error:
        fix = 'close the quoted field, and write "" for a quote inside it'
        raise DataError(f"the row cannot be read: {error}", lines.where, fix) from error
    if empty:
        refuse_empty(file)


def _read_header(file: DataFile, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, [])
    except _RowTooLargeError:
        _refuse_header(file)
    if not header:
        refuse_empty(file)
    refuse_repeated_columns(header, f"{file.source}:1")
    return header


def _refuse_header(file: DataFile) -> NoReturn:
    raise DataError(
        f"the first row has {TOO_LARGE.detail}; it must hold the names of the columns",
        f"{file.source}:1",
        "write the names of the columns into the first line",
    )


def _as_row(fields: list[str], header: list[str], where: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise DataError(
            f"the row has {len(fields)} fields, but the header has {len(header)}",
            where,
            "put quotes around fields that hold the separator, or add the missing fields",
        )
    return dict(zip(header, fields, strict=True))


class _RowTooLargeError(Exception):
    """The row is too large. It has been passed over, and the next row can be read."""


class _RowLines:
    """The lines of a file, for the CSV reader. It stops the reader in a row that is too large.

    Attributes:
        first_line: The number of the line where the current row begins, from 1.
    """

    def __init__(self, file: DataFile, delimiter: str) -> None:
        self._pieces = read_pieces(file)
        self._source = file.source
        self._delimiter = delimiter.encode()
        self._last_line = 0
        self.begin_row()

    def begin_row(self) -> None:
        """Begin a row with the next line."""
        self.first_line = self._last_line + 1
        self._row: list[bytes] = []
        self._num_bytes = 0

    @property
    def where(self) -> str:
        """The place of the current row for messages."""
        return f"{self._source}:{self.first_line}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Return the next line of the row.

        Raises: _RowTooLargeError if the row is too large. The row has then been passed over.
        """
        begin = len(self._row)
        for number, piece in self._pieces:
            self._last_line = number
            self._row.append(piece)
            self._num_bytes += len(piece)
            if self._num_bytes > LARGEST_ROW_BYTES + len(b"\r\n"):
                self._pass_over()
                raise _RowTooLargeError
            if piece.endswith(LINE_END):
                break
        if begin == len(self._row):
            raise StopIteration
        return decode_line(b"".join(self._row[begin:]), f"{self._source}:{self._last_line}")

    def _pass_over(self) -> None:
        """Read to the end of the row without keeping it.

        Raises: csv.Error if the file ends inside a quoted field.
        """
        quotes = _Quotes(self._delimiter)
        for piece in self._row:
            quotes.follow(piece)
        is_over = self._row[-1].endswith(LINE_END) and not quotes.are_open
        self._row.clear()
        while not is_over:
            self._last_line, piece = next(self._pieces, (self._last_line, b""))
            quotes.follow(piece)
            is_over = not piece or (piece.endswith(LINE_END) and not quotes.are_open)
        if quotes.are_open:
            raise csv.Error("unexpected end of data")


class _Quotes:
    """Whether a place in a row is inside a quoted field, as the CSV reader sees it.

    A quote opens a field only at its start. Inside, a second quote is an ordinary character.

    Attributes:
        are_open: Whether the text so far ends inside a quoted field.
    """

    def __init__(self, delimiter: bytes) -> None:
        self._opening = (b"", delimiter, QUOTE)  # a quote after one of these opens a field
        self._before = b""
        self.are_open = False

    def follow(self, piece: bytes) -> None:
        """Follow the next piece of the row."""
        start = 0
        while (quote := piece.find(QUOTE, start)) >= 0:
            before = piece[quote - 1 : quote] if quote > start else self._before
            was_open = self.are_open
            self.are_open = not was_open and before in self._opening
            self._before = QUOTE if was_open else b"x"  # a quote that is just text opens nothing
            start = quote + 1
        if start < len(piece):
            self._before = piece[-1:]
