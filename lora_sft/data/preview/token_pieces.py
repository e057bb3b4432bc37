"""Cut a labelled row's text at its tokens, for eyes: every piece visible, together the whole text.

The vocabulary's own spelling (`Ġquick`, `▁quick`, `<0xC3>`) is no text, and a character may be
several tokens. Control characters become pictures of themselves: content is not trusted, and a
terminal or a page would obey them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

REPLACEMENT_CHARACTER = "\ufffd"  # what decoders put for part of a character
CACHED_WINDOWS = 65_536

CONTROL_PICTURES = 0x2400  # U+2400 pictures U+0000, and so on to U+2420
DELETE = 0x7F
# C0, DEL, C1; then what reorders text or hides itself, and half surrogate pairs. The joiners of
# emoji and of several scripts (U+200C, U+200D) stay.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
PICTURES = {"\n": "↵\n", "\t": "⇥", chr(DELETE): "␡"}


class TokenPieces:
    """Cuts labelled rows of one tokenizer into the text of each token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decode = lru_cache(CACHED_WINDOWS)(self._decode_window)

    def cut(self, input_ids: Sequence[int]) -> list[str]:
        """The text that each token adds; empty for all but the last token of one character.

        A token is decoded behind the one before it: some decoders take a leading space away.
        """
        pieces = []
        start, done = 0, 0
        for end in range(1, len(input_ids) + 1):
            before = self._decode(tuple(input_ids[start:done]))
            after = self._decode(tuple(input_ids[start:end]))
            added = after.removeprefix(before)
            if end < len(input_ids) and (not added or after.endswith(REPLACEMENT_CHARACTER)):
                pieces.append("")
                continue
            pieces.append(added)
            start, done = done, end
        return pieces

    def _decode_window(self, input_ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(input_ids), clean_up_tokenization_spaces=False))


def make_visible(text: str) -> str:
    """The text with a picture for everything that moves the cursor or hides itself."""
    return UNSEEN.sub(lambda found: _picture(found.group()), text)


def _picture(character: str) -> str:
    if character in PICTURES:
        return PICTURES[character]
    code = ord(character)
    return chr(CONTROL_PICTURES + code) if code < ord(" ") else f"\\u{code:04x}"
