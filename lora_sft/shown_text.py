"""Make text from outside the program fit to be shown: printable, and without secrets.

A file name, a key of a recipe or a row may hold control characters, half of a surrogate pair, or a
megabyte. A terminal obeys control characters. An error message has exactly three lines, and the
account is a JSON file, so neither can hold such text unchanged.

An address may hold a password or a signed query, and the message of a library may repeat it.
The functions of this file remove both from everything that is printed or shared.

This file imports no other part of the package.
"""

from __future__ import annotations

import os
import re

LONGEST_CHARACTERS = 300

# All control characters except tab and line break.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_URL = re.compile(r"(?<![\w+.-])([\w+.-]*://)(\S*)")
# Between the URLs of an fsspec chain. `::` inside an IPv6 host does not match.
CHAIN_SEPARATOR = re.compile(r"::(?=~|/|[\w+.-]+:/)")
_AFTER_PATH = re.compile(r"[?;&#]")
# A query after a path without a scheme, as the package requests writes it in its messages.
_QUERY = re.compile(r"(?<=[\w/])\?[\w.%\[\]-]+=\S*")
# Quotes, brackets and the like at the end of a URL belong to the sentence around it.
_PUNCTUATION = "\"'`)]}>,.:;!?"

SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
SHORTEST_SECRET_CHARACTERS = 8  # a shorter value is a placeholder, and part of ordinary words
HIDDEN = "(hidden)"
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def make_one_line(text: str, longest_characters: int = LONGEST_CHARACTERS) -> str:
    """Return `text`, cut at `longest_characters`, with escapes for unprintable characters."""
    if len(text) > longest_characters:
        text = text[: longest_characters - 3] + "..."
    return escape_unprintable(text)


def escape_unprintable(text: str) -> str:
    """Return `text` in one line, with escapes for all unprintable characters."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def escape_controls(text: str) -> str:
    """Return `text` with escapes for control characters. Tabs and line breaks stay.

    This is for text of several lines. Characters that join or order letters stay too, because
    several scripts need them.
    """
    return _CONTROL.sub(lambda found: _escape(found.group()), text)


def escape_json(document: str) -> str:
    """Return a JSON document with escapes for the control characters that JSON itself permits."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", document)


def hide_secrets(text: str) -> str:
    """Return `text` without the secrets that it may hold.

    A URL loses its user, password, query and fragment. Tokens of the Hub and the values of
    `SECRET_VARIABLES` become `HIDDEN`.
    """
    if "://" in text:
        parts = CHAIN_SEPARATOR.split(text)
        text = "::".join(_URL.sub(_shorten_url, part) for part in parts)
    text = _QUERY.sub("", text)
    for variable in SECRET_VARIABLES:
        secret = os.environ.get(variable, "").strip()
        if len(secret) >= SHORTEST_SECRET_CHARACTERS:
            text = text.replace(secret, HIDDEN)
    return _HUB_TOKEN.sub(HIDDEN, text)


def _shorten_url(url: re.Match[str]) -> str:
    scheme, rest = url.groups()
    place = rest.rstrip(_PUNCTUATION)
    return scheme + _strip_place(scheme, place) + rest[len(place) :]


def _strip_place(scheme: str, place: str) -> str:
    """Return host and path of a URL."""
    kept = _AFTER_PATH.split(place, maxsplit=1)[0]
    if scheme.lower() == "hf://":  # it has no user: a revision follows the @
        return kept
    if "@" in place[len(kept) :]:  # the password may hold one of these characters
        return ""
    return kept.rpartition("@")[2]


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
