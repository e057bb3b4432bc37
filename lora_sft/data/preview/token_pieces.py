"""Cut the text of a labelled row at its tokens, for display.

The pieces add up to the whole text. The vocabulary's spelling of a token (`Ġquick`, `▁quick`,
`<0xC3>`) is not its text, and one character may be several tokens. Each control character is
replaced by a visible symbol: content is not trusted, and a terminal or a page would obey it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

REPLACEMENT_CHARACTER = "\ufffd"  # decoders write it for a part of a character
CACHED_WINDOWS = 65_536

CONTROL_SYMBOLS = 0x2400  # Unicode's symbol of U+0000; those up to U+0020 follow it
DELETE = 0x7F
# The control characters (C0, DEL, C1), characters that reorder text or are invisible, and halves of
# surrogate pairs. The joiners of emoji and of several scripts (U+200C, U+200D) are not replaced.
HIDDEN_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
SYMBOLS = {"\n": "↵\n", "\t": "⇥", chr(DELETE): "␡"}


class TokenPieces:
    """A decoder that returns the text of each token of a row, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decode = lru_cache(CACHED_WINDOWS)(self._decode_window)

    def cut(self, input_ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds.

        If one character is several tokens, all but the last of them get an empty text. A token is
        decoded together with the token before it, because some decoders remove a leading space.
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
    """Return the text with a symbol for each character that is invisible or moves the cursor."""
    return HIDDEN_CHARACTERS.sub(lambda found: _find_symbol(found.group()), text)


def _find_symbol(character: str) -> str:
    if character in SYMBOLS:
        return SYMBOLS[character]
    code = ord(character)
    return chr(CONTROL_SYMBOLS + code) if code < ord(" ") else f"\\u{code:04x}"
