"""End an answer at a stop text of the request, or after its client has left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopTexts(StoppingCriteria):
    """Ends an answer that contains one of the texts.

    transformers' own criterion (5.23) first compares each text with the whole vocabulary. With
    150,000 tokens, a text of 64 characters takes 3 seconds. This one decodes the last tokens of
    the answer instead.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompt_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        self._prompt_tokens = prompt_tokens
        # A token holds at least one byte of the text.
        self._tail_tokens = max(len(text.encode()) for text in texts)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return one flag per sequence (B,)."""
        first = max(self._prompt_tokens, input_ids.shape[1] - self._tail_tokens)
        tails = self._tokenizer.batch_decode(
            input_ids[:, first:], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        found = [any(text in tail for text in self._texts) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


class ClientLeft(StoppingCriteria):
    """Ends an answer that nobody waits for."""

    has_left = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return one flag per sequence (B,)."""
        return torch.full((input_ids.shape[0],), self.has_left, device=input_ids.device)
