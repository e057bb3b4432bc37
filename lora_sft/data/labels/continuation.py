"""Tokenise a piece of text as what comes after another piece, not as the start of a text.

Tokenizers of the SentencePiece kind put a space before whatever begins a text. A target that is
tokenised apart from its prompt is no beginning, and must not get one.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


class ContinuationTokenizer:
    """Tokenises pieces without special tokens of the tokenizer's own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._newline = self.encode_start("\n")
        self._adds_space = self.encode_start("x") != self.encode_start("\nx")[len(self._newline) :]

    def encode_start(self, text: str, *, plainly: bool = False) -> list[int]:
        """The ids of `text` at the start of a text; `plainly`: special tokens as their spelling."""
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, verbose=False, split_special_tokens=plainly
        )
        return ids

    def encode(self, text: str, *, plainly: bool = False) -> list[int]:
        """The ids of `text` after some other text, which is not looked at.

        Where the tokenizer adds a space at the start, a newline takes it and is cut off again.
        """
        if self._adds_space and text:
            ids = self.encode_start("\n" + text, plainly=plainly)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self.encode_start(text, plainly=plainly)
