"""Plan the embedding and the output head: one tensor or two, and with how many rows.

Many models use one tensor for both (`tie_word_embeddings`). If an adapter changes only one of them,
both must be written, and the config must say that they are not tied. Otherwise the library that
loads the model silently replaces one of them by the other.
"""

from __future__ import annotations

from typing import Any

import torch

from lora_sft.errors import ExportError
from lora_sft.export.weights.placing import Placer
from lora_sft.export.weights.tensor_reading import TensorReader
from lora_sft.export.weights.weight_changes import LowRank, Weight
from lora_sft.model_files.stored_tensors import StoredTensor

COMPARED_BYTES = 16 << 20


def plan_embeddings(placer: Placer) -> dict[str, Any]:
    """Complete the placer's embedding and output head. Return the changes to config.json.

    Raises: ExportError if embedding and head would have different numbers of rows.
    """
    names = placer.names
    embedding, head = names.input_embedding, names.output_head
    if embedding is None or head is None:
        return {}
    changes: dict[str, Any] = {}
    touched = embedding in placer.parameters or head in placer.parameters
    if names.is_tied and touched and _will_stay_tied(placer, embedding, head):
        both = placer.parameters.pop(head, None)
        placer.used_tensors |= both.tensors if both else set()
        kept = placer.parameters.setdefault(embedding, both or Weight(placer.find_tied()))
        if names.find(head):  # the file has the tied tensor under the head's name, or twice
            placer.parameters[head] = kept
            if not names.find(embedding):
                del placer.parameters[embedding]
    elif names.is_tied and touched:
        for name in (embedding, head):
            placer.parameters.setdefault(name, Weight(placer.find_tied()))
        changes["tie_word_embeddings"] = False
    rows = _count_rows(placer, embedding, head)
    if rows is not None:
        changes["vocab_size"] = rows
    return changes


def _will_stay_tied(placer: Placer, embedding: str, head: str) -> bool:
    """Return whether a tied embedding and head are still one tensor after the merge.

    A tied head shares trained token rows (peft 0.21 `set_additional_trainable_modules`). Any other
    change must be equal for both, as PEFT saves it with `ensure_weight_tying`.
    """
    left, right = placer.parameters.get(embedding), placer.parameters.get(head)
    if left is not None and right is not None:
        with TensorReader() as reader:
            return _are_equal_weights(left, right, reader)
    only = left or right
    assert only is not None
    trained = embedding in placer.trained_parameters or head in placer.trained_parameters
    return left is not None and not trained and not only.terms


def _are_equal_weights(left: Weight, right: Weight, reader: TensorReader) -> bool:
    if len(left.terms) != len(right.terms) or len(left.rows) != len(right.rows):
        return False
    for ours, theirs in zip(left.rows, right.rows, strict=True):
        if ours.indices != theirs.indices or not _have_equal_bytes(ours.rows, theirs.rows, reader):
            return False
    for one, other in zip(left.terms, right.terms, strict=True):
        if one.scale != other.scale or not _have_equal_factors(one, other, reader):
            return False
    return _have_equal_bytes(left.source, right.source, reader)


def _have_equal_factors(one: LowRank, other: LowRank, reader: TensorReader) -> bool:
    """Return whether two terms have the same factors.

    One term may belong to an embedding and the other to a linear head; then one is transposed.
    """
    if (one.magnitude is None) != (other.magnitude is None):
        return False
    factors = []
    for term in (one, other):
        a, b = reader.read(term.a), reader.read(term.b)
        factors.append((a.T, b.T) if term.transposed else (b, a))
    (left, right), (their_left, their_right) = factors
    return torch.equal(left, their_left) and torch.equal(right, their_right)


def _have_equal_bytes(left: StoredTensor, right: StoredTensor, reader: TensorReader) -> bool:
    """Return whether two stored tensors have the same shape, dtype and bytes."""
    if left == right:
        return True
    if (left.shape, left.dtype_code) != (right.shape, right.dtype_code):
        return False
    for start in range(0, left.num_bytes, COMPARED_BYTES):
        size = min(COMPARED_BYTES, left.num_bytes - start)
        if reader.read_bytes(left, start, size) != reader.read_bytes(right, start, size):
            return False
    return True


def _count_rows(placer: Placer, embedding: str, head: str) -> int | None:
    """Return the number of rows of embedding and head, or None if it does not change.

    Raises: ExportError if the two numbers differ.
    """
    rows = {}
    for name in (embedding, head):
        found = placer.names.find(name)
        stored = found[0].tensor.shape[0] if found else None
        weight = placer.parameters.get(name)
        after = weight.source.shape[0] if weight is not None else stored
        if after is not None:
            rows[name] = (stored, after)
    counted = {counts[1] for counts in rows.values()}
    if len(counted) > 1:
        listed = ", ".join(f"{name} {counts[1]}" for name, counts in rows.items())
        raise ExportError(
            f"embedding and head would have different numbers of rows: {listed}",
            placer.base.location,
            "the adapter was saved without one of its resized layers: save it again with "
            "save_embedding_layers=True",
        )
    changed = any(before is not None and before != now for before, now in rows.values())
    return counted.pop() if changed else None
