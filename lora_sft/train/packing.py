"""Are rows packed? Decided once, when data, model and batch are known, and alike on every process.

`data.packing: auto` packs where it is safe (`model.isolation` asks the model) and leaves enough
optimizer steps; otherwise it says why not. `true` packs or refuses; `false` leaves rows alone.
Packing changes what a step is: `global_batch_size` then counts packed rows.

Held-out rows are never packed. The Trainer's `eval_loss` is a mean over batches, so that other
batches would give another number for the same model.
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
from lora_sft.model.isolation import Isolation, measure_isolation
from lora_sft.plan.batch import BatchPlan
from lora_sft.recipe import Recipe
from lora_sft.train import zero
from lora_sft.train.training_rows import TrainingRows
from lora_sft.train.trl.row_collator import make_collator

# Packing makes fewer and larger steps. A small set needs its steps (warm-up, decay, the updates
# themselves) more than the minutes that its padding costs.
MIN_STEPS_AN_EPOCH = 32
LEAST_SAVED_ROWS = 0.1  # of all; below it padding is next to nothing too
PROBED_TOKENS = 64  # of each of two documents

# (packed rows, keep them apart) -> the model's inputs
Collate = Callable[[Sequence[Mapping[str, Any]], bool], Mapping[str, Any]]


def decide_packing(
    recipe: Recipe,
    batch: BatchPlan,
    documents: Dataset,
    model: CausalModel,
    arguments: Any,
    collate: Collate,
) -> TrainingRows:
    """Pack the training rows, or leave them as they are.

    `collate` makes a batch of packed rows as the trainer will.

    Raises: CapabilityError where `data.packing: true` is not safe on this model.
    """
    lengths = count_tokens(documents)
    learned = count_learned_tokens(documents)
    plain = TrainingRows(documents, len(documents), int(lengths.sum()), learned)
    if recipe.data.packing is False:
        return replace(plain, reason="data.packing is false")
    layout = lay_out_documents(lengths, recipe.data.max_length)
    if recipe.data.packing == "auto":
        reason = find_reason_to_leave(layout, len(documents), batch)
        if reason:
            return replace(plain, reason=reason)
    pair = _choose_pair(documents, lengths)
    isolation, apart = _probe(model, arguments, collate, pair, batch.micro_batch_size)
    fault, apart = _agree_on(isolation.fault, apart, arguments.device)
    if fault and recipe.data.packing is True:
        _refuse(fault, recipe, model)
    if fault:
        return replace(plain, reason=fault, isolation=isolation)
    return replace(
        plain,
        dataset=pack_documents(documents, layout),
        is_on=True,
        utilisation=layout.utilisation,
        keeps_rows_apart=apart,
        isolation=isolation,
    )


def find_reason_to_leave(layout: PackingLayout, num_documents: int, batch: BatchPlan) -> str:
    """Why `auto` leaves these rows as they are, whatever the model; nothing where it does not."""
    saved = num_documents - layout.num_packed_rows
    if saved < LEAST_SAVED_ROWS * num_documents:
        return f"only {saved:,} of {num_documents:,} rows fit beside others in max_length"
    steps = layout.num_packed_rows // batch.global_batch_size
    if steps < MIN_STEPS_AN_EPOCH:
        return (
            f"{num_documents:,} rows would become {layout.num_packed_rows:,} packed ones, "
            f"{steps} steps an epoch at global_batch_size {batch.global_batch_size} "
            f"(auto wants at least {MIN_STEPS_AN_EPOCH})"
        )
    return ""


def _choose_pair(documents: Dataset, lengths: np.ndarray[Any, Any]) -> list[list[int]]:
    """The beginnings of the two longest documents (of one, where there is but one)."""
    longest = np.argsort(lengths, kind="stable")[::-1][:2]
    return [documents[int(number)]["input_ids"][:PROBED_TOKENS] for number in longest]


def _probe(
    model: CausalModel,
    arguments: Any,
    collate: Collate,
    pair: list[list[int]],
    micro_batch_size: int,
) -> tuple[Isolation, bool]:
    """How well this model keeps documents apart, and whether rows have a line each in a batch.

    One line of all rows is what kernels with borders (`cu_seq_lens`) read; with a mask it would
    cost the square of the whole line, so there rows keep their own.
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
    """Batches of two rows: the one that is looked at, and a shorter one that is padded."""

    def make(documents: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        rows = [_make_row(documents), _make_row([documents[-1][:-1]])]
        return collate(rows[: 1 + apart], apart)

    return make


def _make_row(documents: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    ids = [token for document in documents for token in document]
    lengths = [len(document) for document in documents]
    return {"input_ids": ids, "labels": ids, "seq_lengths": lengths}


def _find_obstacle(arguments: Any) -> str:
    """What stands against packing without a look at the model."""
    parallelism = getattr(arguments, "parallelism_config", None)
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        return "a row that is cut over several devices loses the borders of its documents"
    if is_deepspeed_zero3_enabled():
        return "under ZeRO-3 the model cannot be asked whether documents stay apart"
    return ""


def _find_autocast(arguments: Any) -> torch.dtype | None:
    if arguments.bf16 or zero.autocasts_bfloat16(arguments.deepspeed):
        return torch.bfloat16
    return torch.float16 if arguments.fp16 else None


def _agree_on(fault: str, apart: bool, device: torch.device) -> tuple[str, bool]:
    """A fault on any process is one on all: they must train on the same rows, batched alike."""
    if not torch.distributed.is_initialized():
        return fault, apart
    flags = torch.tensor([bool(fault), not apart], dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    elsewhere = "another process found that rows are not kept apart" if flags[0] else ""
    return fault or elsewhere, not flags[1]


def _refuse(fault: str, recipe: Recipe, model: CausalModel) -> None:
    attention = model.config._attn_implementation
    raise CapabilityError(
        f"rows cannot be packed: {fault}",
        f"{recipe.where('data.packing')} ({model.config.model_type}, attention {attention})",
        "write data.packing: auto (it leaves such rows unpacked), or another "
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
    """The rows to train on, packed where the recipe and the model allow it; says which."""

    def collate(rows: Sequence[Mapping[str, Any]], apart: bool) -> Mapping[str, Any]:
        return make_collator(tokenizer, arguments, keeps_rows_apart=apart)(list(rows))

    packing = decide_packing(recipe, batch, documents, model, arguments, collate)
    say(packing.describe(batch))
    return packing
