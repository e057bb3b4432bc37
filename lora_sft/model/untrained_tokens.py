"""Find tokens that the base has never been trained on, before an adapter is asked to use them.

Many bases have rows in their embedding that no text ever reached: reserved tokens, and the marks of
a chat template that only the chat version of the model knows. LoRA on linear layers cannot move
them, so the template's header and stop would be read as noise. Such rows show by their length: they
were never pulled away from a small start, or were set to zero or to the mean of all others. (Land
and Bartolo 2024, "Fishing for Magikarp", https://arxiv.org/abs/2405.05417, find such tokens
by the same kinds of sign.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lora_sft.model.base_model import CausalModel

# Of the median length of all rows. The shortest rows of two trained bases were at 0.54 and 0.72; a
# rule of thumb, so it warns and decides nothing.
UNTRAINED_LENGTH = 0.4


def find_untrained_tokens(model: CausalModel, token_ids: Iterable[int]) -> list[int]:
    """Those of `token_ids` whose embedding row is far shorter than rows are; none where the weight
    is not here whole (ZeRO-3 keeps it in parts)."""
    weight = model.get_input_embeddings().weight.detach()
    wanted = sorted(set(token_ids))
    if weight.ndim != 2 or not wanted or wanted[-1] >= weight.shape[0]:
        return []
    lengths = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    found = lengths[wanted] < UNTRAINED_LENGTH * lengths.median()
    return [token for token, is_short in zip(wanted, found.tolist(), strict=True) if is_short]
