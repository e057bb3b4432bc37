"""Find tokens that the base was never trained on, before an adapter needs them.

The embedding of many bases has rows that no text has ever used. They belong to reserved tokens, or
to the markers of a chat template that only the chat version of the model knows. LoRA on linear
layers cannot change these rows. So the model would read the template's markers and stop tokens as
noise.

Such rows are short: they kept their small initial value, or were set to zero or to the mean of all
other rows. Land and Bartolo 2024, "Fishing for Magikarp", https://arxiv.org/abs/2405.05417, find
such tokens in similar ways.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lora_sft.model.base_model import CausalModel

# A fraction of the median length of all rows. The shortest rows of two trained bases had 0.54 and
# 0.72 of it. The limit is only an estimate, so it leads to a warning and never to an error.
UNTRAINED_LENGTH = 0.4


def find_untrained_tokens(model: CausalModel, token_ids: Iterable[int]) -> list[int]:
    """Return those of `token_ids` whose embedding row is far shorter than other rows.

    Returns [] if this process does not hold the whole embedding (ZeRO-3 partitions it).
    """
    weight = model.get_input_embeddings().weight.detach()
    wanted = sorted(set(token_ids))
    if weight.ndim != 2 or not wanted or wanted[-1] >= weight.shape[0]:
        return []
    lengths = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    found = lengths[wanted] < UNTRAINED_LENGTH * lengths.median()
    return [token for token, is_short in zip(wanted, found.tolist(), strict=True) if is_short]
