"""Read the lines of a text file in bounded memory.

A line may be as long as its file, and a small packed file may hold a very long line. So a file is
read in pieces, and a line is put together only while it is no longer than a source row may be.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import NoReturn

from lora_sft.data.drops import LARGEST_ROW_BYTES
from lora_sft.data.rows.data_files import READ_FAULTS, DataFile, make_read_error
from lora_sft.errors import DataError

PIECE_BYTES = 2**20
LINE_END = b"\n"

# A line, or a part of one, with the number of the line, from 1.
NumberedPiece = tuple[int, bytes]
# A line with its number; None for a line that is too long.
NumberedLine = tuple[int, bytes | None]


def read_pieces(file: DataFile) -> Iterator[NumberedPiece]:
    """Yield the bytes of a file in their order, at most `PIECE_BYTES` of one line at a time.

    A byte order mark at the start is removed.

    Raises: DataError, with the line, if the file cannot be read.
    """
    number, has_begun = 1, False
    try:
        with file.open() as stream:
            while piece := stream.readline(PIECE_BYTES):
                yield number, piece if has_begun else piece.removeprefix(codecs.BOM_UTF8)
                has_begun = True
                number += piece.endswith(LINE_END)
    except READ_FAULTS as error:
        where = f"{file.source}:{number}" if has_begun else None
        raise make_read_error(file, error, where) from error


def join_lines(pieces: Iterable[NumberedPiece]) -> Iterator[NumberedLine]:
    """Yield the lines that the pieces make. A line that is too long is passed over piece by piece.

    The end of a line belongs to it, but not to its length.
    """
    parts: list[bytes] = []
    number, num_bytes = 0, 0
    for number, piece in pieces:
        num_bytes += len(piece)
        parts.append(piece)
        if num_bytes > LARGEST_ROW_BYTES + PIECE_BYTES:
            parts.clear()
        if piece.endswith(LINE_END):
            yield number, _join(parts, num_bytes)
            parts, num_bytes = [], 0
    if num_bytes:
        yield number, _join(parts, num_bytes)


def _join(parts: list[bytes], num_bytes: int) -> bytes | None:
    line = b"".join(parts)
    is_whole = len(line) == num_bytes
    return line if is_whole and len(line.rstrip(b"\r\n")) <= LARGEST_ROW_BYTES else None


def decode_line(line: bytes, where: str) -> str:
    """Return the text of a line.

    Raises: DataError, with the byte, if the line is not valid UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        _refuse_encoding(error.start, where, error)


def decode_pieces(pieces: Iterable[NumberedPiece], source: str) -> Iterator[str]:
    """Yield the text of pieces. A piece may end inside a character.

    Raises: DataError, with line and byte, if a piece is not valid UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    number, num_decoded = 1, 0  # bytes of this line before the piece
    try:
        for numbered in pieces:
            number, piece = numbered
            yield decoder.decode(piece)
            num_decoded = 0 if piece.endswith(LINE_END) else num_decoded + len(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        num_kept = len(decoder.getstate()[0])  # bytes of a character that began in a piece before
        _refuse_encoding(num_decoded - num_kept + error.start, f"{source}:{number}", error)


def _refuse_encoding(position: int, where: str, error: UnicodeDecodeError) -> NoReturn:
    raise DataError(
        f"byte {position + 1} of the line is not valid UTF-8",
        where,
        "save the file as UTF-8, for example: iconv -f latin1 -t utf-8 OLD > NEW",
    ) from error
