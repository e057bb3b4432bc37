"""Write text from outside the program, such as a column name, in one printable line.

Such text may hold a line break, half of a surrogate pair, or a megabyte. An error message has
exactly three lines, and the account is a JSON file, so neither can hold the text unchanged.
"""

from __future__ import annotations

LONGEST_CHARACTERS = 300


def make_one_line(text: str) -> str:
    """Return `text`, cut at `LONGEST_CHARACTERS`, with escapes for unprintable characters."""
    if len(text) > LONGEST_CHARACTERS:
        text = text[: LONGEST_CHARACTERS - 3] + "..."
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
