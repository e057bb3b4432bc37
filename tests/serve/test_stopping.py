"""Stop texts, compared with the criterion of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.stopping_criteria import StopStringCriteria

from lora_sft.serve.stopping import StopTexts
from tests.tiny import make_tokenizer

PROMPT = "The answer is "
ANSWER = "fine, thank you. Zürich 😀 – Who are you?<|im_end|>\n### User:"


@pytest.mark.parametrize(
    "stops",
    [
        [","],
        ["thank you"],
        [" you. Z"],
        ["ü"],
        ["😀"],
        ["–"],
        ["<|im_end|>"],
        ["\n### User:"],
        ["never", "Who", "are"],
        ["never in it"],
        ["is fine"],
    ],
    ids=str,
)
def test_an_answer_ends_at_the_same_token_as_with_transformers(stops):
    tokenizer = make_tokenizer()
    prompt, answer = (tokenizer(text)["input_ids"] for text in (PROMPT, ANSWER))
    ids = prompt + answer
    ours = StopTexts(tokenizer, stops, len(prompt))
    theirs = StopStringCriteria(tokenizer, stops)
    lengths = range(len(prompt) + 1, len(ids) + 1)

    def find_end(criterion):
        ends = (n for n in lengths if criterion(torch.tensor([ids[:n]]), None).item())
        return next(ends, None)

    # A text that begins in the prompt is not a part of the answer.
    expected = None if stops == ["is fine"] else find_end(theirs)
    assert find_end(ours) == expected
    assert (expected is None) == (stops[0] in ("never in it", "is fine"))
