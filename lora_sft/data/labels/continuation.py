"""Tokenise a text as the continuation of another text.

SentencePiece tokenizers put a space before the first word of a text. A target that is tokenised
separately from its prompt must not get this space.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


class ContinuationTokenizer:
    """A tokenizer for parts of a text. It adds no special tokens of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._newline = self.encode_start("\n")
        self._adds_space = self.encode_start("x") != self.encode_start("\nx")[len(self._newline) :]

    def encode_start(self, text: str, *, as_plain_text: bool = False) -> list[int]:
        """Return the ids of `text` at the beginning of a text.

        Args:
            as_plain_text: Tokenise strings that look like special tokens as ordinary text.
        """
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, verbose=False, split_special_tokens=as_plain_text
        )
        return ids

    def encode(self, text: str, *, as_plain_text: bool = False) -> list[int]:
        """Return the ids of `text` after another text.

        If the tokenizer adds a space at the beginning, a newline is put before `text`. The space
        then comes before the newline, and the ids of both are cut off.
        """
        if self._adds_space and text:
            ids = self.encode_start("\n" + text, as_plain_text=as_plain_text)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self.encode_start(text, as_plain_text=as_plain_text)
