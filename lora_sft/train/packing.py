"""Decide whether the training rows are packed, and pack them.

A packed row holds several labelled rows, here called documents. The decision is made once, when
data, model and batch plan are known, and it is equal on every process:

- `data.packing: auto` packs if the model keeps documents apart (`model.isolation` measures that)
  and if enough optimizer steps remain. Otherwise the log says why rows are not packed.
- `true` packs, or raises an error if it is not safe.
- `false` does not pack.

With packing, `global_batch_size` counts packed rows. Held-out rows are never packed: the Trainer's
`eval_loss` is a mean over batches, so other batches would give another value for the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from lora_sft.data.corpus.packing import (
    PackingLayout,
    count_learned_tokens,
    count_tokens,
    lay_out_documents,
    pack_documents,
)
from lora_sft.errors import CapabilityError
from lora_sft.log import say
from lora_sft.model.base_model import (
    CausalModel,
)
from lora_sft.model.computing import computing_errors
from lora_sft.model.isolation import Isolation, measure_isolation
from lora_sft.plan.batch import BatchPlan
from lora_sft.recipe import Recipe
from lora_sft.train import zero
from lora_sft.train.training_rows import TrainingRows
from lora_sft.train.trl.row_collator import make_collator

# Packing makes fewer and larger steps. For a small data set the number of steps (warm-up, decay,
# updates) matters more than the few minutes that padding costs.
MIN_STEPS_PER_EPOCH = 32
MIN_SAVED_SHARE = 0.1  # of the rows; if packing saves less, padding costs little too
PROBED_TOKENS = 64  # of each of the two documents that probe the model

# A function of packed rows and `keeps_rows_apart` that returns the model's inputs.
Collate = Callable[[Sequence[Mapping[str, Any]], bool], Mapping[str, Any]]


def decide_packing(
    recipe: Recipe,
    batch: BatchPlan,
    documents: Dataset,
    model: CausalModel,
    arguments: Any,
    collate: Collate,
) -> TrainingRows:
    """Return the training rows, packed if recipe, data and model allow it.

    Args:
        recipe: The recipe.
        batch: How the global batch is divided.
        documents: The labelled rows.
        model: The model, to measure whether it keeps documents apart.
        arguments: TRL's `SFTConfig`.
        collate: Makes a batch of packed rows, in the same way as the trainer.

    Raises: CapabilityError if `data.packing: true` is not safe with this model.
    """
    lengths = count_tokens(documents)
    learned = count_learned_tokens(documents)
    unpacked = TrainingRows(documents, len(documents), int(lengths.sum()), learned)
    if recipe.data.packing is False:
        return replace(unpacked, reason="data.packing is false")
    layout = lay_out_documents(lengths, recipe.data.max_length)
    if recipe.data.packing == "auto":
        reason = find_reason_not_to_pack(layout, len(documents), batch)
        if reason:
            return replace(unpacked, reason=reason)
    pair = _choose_pair(documents, lengths)
    with computing_errors(recipe.model.model_name_or_path):
        isolation, apart = _probe(model, arguments, collate, pair, batch.micro_batch_size)
    fault, apart = _agree(isolation.fault, apart, arguments.device)
    if fault and recipe.data.packing is True:
        _refuse(fault, recipe, model)
    if fault:
        return replace(unpacked, reason=fault, isolation=isolation)
    return replace(
        unpacked,
        dataset=pack_documents(documents, layout),
        is_packed=True,
        utilisation=layout.utilisation,
        keeps_rows_apart=apart,
        isolation=isolation,
    )


def find_reason_not_to_pack(layout: PackingLayout, num_documents: int, batch: BatchPlan) -> str:
    """Return why `auto` does not pack these rows, on any model; empty if it may pack them."""
    saved = num_documents - layout.num_packed_rows
    if saved < MIN_SAVED_SHARE * num_documents:
        return f"only {saved:,} of {num_documents:,} rows fit beside others in max_length"
    steps = layout.num_packed_rows // batch.global_batch_size
    if steps < MIN_STEPS_PER_EPOCH:
        return (
            f"{num_documents:,} rows would become {layout.num_packed_rows:,} packed rows, "
            f"only {steps} steps per epoch at global_batch_size {batch.global_batch_size} "
            f"(auto needs at least {MIN_STEPS_PER_EPOCH})"
        )
    return ""


def _choose_pair(documents: Dataset, lengths: np.ndarray[Any, Any]) -> list[list[int]]:
    """Return the first tokens of the two longest documents (of one, if there is only one)."""
    longest = np.argsort(lengths, kind="stable")[::-1][:2]
    return [documents[int(number)]["input_ids"][:PROBED_TOKENS] for number in longest]


def _probe(
    model: CausalModel,
    arguments: Any,
    collate: Collate,
    pair: list[list[int]],
    micro_batch_size: int,
) -> tuple[Isolation, bool]:
    """Measure how well the model keeps documents apart, and choose the form of a batch.

    Flash attention reads the borders of documents (`cu_seq_lens`), so all packed rows of a batch
    can be joined into one sequence. With a mask, the cost of attention grows with the square of
    that sequence's length. So there each packed row stays a row of its own, if that is safe.

    Returns: The measurement, and whether packed rows stay apart.
    """
    refusal = _find_obstacle(arguments)
    if refusal or len(pair) < 2:
        return Isolation(refusal=refusal), False
    is_masked = "flash" not in (model.config._attn_implementation or "")
    candidates = (True, False) if is_masked and micro_batch_size > 1 else (False,)
    for apart in candidates:
        isolation = measure_isolation(
            model, _make_batches(collate, apart), (pair[0], pair[1]), _find_autocast(arguments)
        )
        if not isolation.fault:
            break
    return isolation, apart


def _make_batches(collate: Collate, apart: bool) -> Any:
    """Return a function from documents to a batch for the measurement.

    If rows stay apart, the batch has a second, shorter row, because padding must be safe too.
    """

    def make(documents: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        rows = [_make_row(documents), _make_row([documents[-1][:-1]])]
        return collate(rows[: 1 + apart], apart)

    return make


def _make_row(documents: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    ids = [token for document in documents for token in document]
    lengths = [len(document) for document in documents]
    return {"input_ids": ids, "labels": ids, "seq_lengths": lengths}


def _find_obstacle(arguments: Any) -> str:
    """Return why packing cannot be safe with these settings; empty if the model decides."""
    parallelism = getattr(arguments, "parallelism_config", None)
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        return "a row that is divided among several devices loses the borders of its documents"
    if is_deepspeed_zero3_enabled():
        return "under ZeRO-3 it cannot be measured whether documents stay apart"
    return ""


def _find_autocast(arguments: Any) -> torch.dtype | None:
    if arguments.bf16 or zero.autocasts_bfloat16(arguments.deepspeed):
        return torch.bfloat16
    return torch.float16 if arguments.fp16 else None


def _agree(fault: str, apart: bool, device: torch.device) -> tuple[str, bool]:
    """Return the same decision on every process: a fault on one process counts for all.

    All processes must train on the same rows, in batches of the same form.
    """
    if not torch.distributed.is_initialized():
        return fault, apart
    flags = torch.tensor([bool(fault), not apart], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    other_fault = "another process found that documents do not stay apart" if flags[0] else ""
    return fault or other_fault, not flags[1]


def _refuse(fault: str, recipe: Recipe, model: CausalModel) -> None:
    attention = model.config._attn_implementation
    raise CapabilityError(
        f"rows cannot be packed: {fault}",
        f"{recipe.where('data.packing')} ({model.config.model_type}, attention {attention})",
        "write data.packing: auto (it trains without packing), or set another "
        "model.attn_implementation",
    )


def pack_rows(
    recipe: Recipe,
    batch: BatchPlan,
    documents: Dataset,
    model: CausalModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Any,
) -> TrainingRows:
    """Return the rows to train on, and log whether they are packed and why."""

    def collate(rows: Sequence[Mapping[str, Any]], apart: bool) -> Mapping[str, Any]:
        return make_collator(tokenizer, arguments, keeps_rows_apart=apart)(list(rows))

    packing = decide_packing(recipe, batch, documents, model, arguments, collate)
    say(packing.describe(batch))
    return packing
