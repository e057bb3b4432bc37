"""Compute the loss of a model on the learned tokens of held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lora_sft.data.labelled_row import IGNORED_LABEL
from lora_sft.model.base_model import CausalModel


@torch.inference_mode()
def compute_loss(
    model: CausalModel, rows: Sequence[Mapping[str, Any]], batch_size: int, pad_id: int
) -> float:
    """Return the mean cross-entropy in nats over all learned tokens of `rows`.

    Every token has the same weight, so the result does not depend on `batch_size`.
    """
    total_nats, total_tokens = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        ids_BT, labels_BT = _pad(batch, "input_ids", pad_id), _pad(batch, "labels", IGNORED_LABEL)
        mask_BT = _pad([{"ones": [1] * len(row["input_ids"])} for row in batch], "ones", 0)
        logits_BTV = model(
            input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)
        ).logits
        targets_BT = labels_BT[:, 1:].to(model.device)
        learned = targets_BT != IGNORED_LABEL
        nats = cross_entropy(
            logits_BTV[:, :-1][learned].float(), targets_BT[learned], reduction="sum"
        )
        total_nats += float(nats)
        total_tokens += int(learned.sum())
    return total_nats / max(total_tokens, 1)


def _pad(rows: Sequence[Mapping[str, Any]], column: str, value: int) -> torch.Tensor:
    sequences = [torch.tensor(row[column], dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)
