"""Show text that came from outside in one printable line.

A column name, a role or a file name may hold a line break, half a character or a megabyte; an
error of three lines and an account that is JSON may not.
"""

from __future__ import annotations

LONGEST_CHARACTERS = 300


def make_one_line(text: str) -> str:
    """`text` with its odd characters escaped, cut where it is long."""
    if len(text) > LONGEST_CHARACTERS:
        text = text[: LONGEST_CHARACTERS - 3] + "..."
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
