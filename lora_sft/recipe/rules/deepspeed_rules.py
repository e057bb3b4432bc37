"""What must hold together where DeepSpeed spreads the model over the processes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lora_sft.recipe.deepspeed_policy import Policy, list_contradictions, read_policy
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding

# From here on a process holds only its share of the parameters themselves.
PARTITIONED_STAGE = 3


# Optimizers that treat each number by itself, or (8 bits) each run of a few hundred: they may see
# one flat share of all weights. Others look at a whole matrix, its rows, its columns or its norm.
ELEMENTWISE = frozenset(
    f"{paged}{name}_{bits}bit"
    for paged in ("", "paged_")
    for name in ("adamw", "ademamix", "lion")
    for bits in (8, 32)
) | {
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"),
    *("adamw_anyprecision", "adamw_bnb_8bit", "ademamix", "sgd", "adagrad", "rmsprop"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
}


def a_policy_is_json(recipe: Recipe) -> Iterator[Finding]:
    """DeepSpeed would read it in every process, after the data was prepared."""
    try:
        read_policy(recipe)
    except (OSError, ValueError) as error:
        what = f"the DeepSpeed file cannot be read: {error}"
        yield Finding(("train.deepspeed",), what, "write train.deepspeed: zero2, or mend the file")


def a_policy_leaves_the_numbers_to_the_recipe(recipe: Recipe) -> Iterator[Finding]:
    """Two places for one setting: the run would train what one of them says, unseen."""
    policy = _read_policy(recipe)
    if policy is None:
        return
    for name, path, value in list_contradictions(policy, recipe):
        here = recipe.where(path).rpartition("  ")[0]
        what = f"{policy.source} says {name}: {json.dumps(value)}, and {path} ({here}) decides that"
        fix = f'write "{name}": "auto"' if not isinstance(value, dict) else f'delete "{name}"'
        yield Finding(("train.deepspeed", path), what, f"{fix} in {policy.source}")


def float16_needs_a_loss_scale_that_is_shared(recipe: Recipe) -> Iterator[Finding]:
    """DeepSpeed scales float16 losses by itself, unlike the rest; nothing here proves it equal."""
    if recipe.train.get("deepspeed") is None:
        return
    for path in ("model.dtype", "train.fp16"):
        asked = (
            recipe.model.dtype == "float16" if path == "model.dtype" else recipe.train.get("fp16")
        )
        if asked:
            what = "float16 under DeepSpeed does not give the numbers of one process"
            fix = "write model.dtype: bfloat16, or leave out train.deepspeed"
            yield Finding((path, "train.deepspeed"), what, fix)


def eight_bit_weights_are_not_partitioned(recipe: Recipe) -> Iterator[Finding]:
    """bitsandbytes keeps the scales of int8 weights beside them, where ZeRO-3 loses them."""
    settings = recipe.quantization or {}
    if _is_partitioned(recipe) and settings.get("load_in_8bit"):
        what = "8-bit weights cannot be spread over processes (ZeRO-3)"
        fix = "write quantization: nf4, or train.deepspeed: zero2"
        yield Finding(("quantization", "train.deepspeed"), what, fix)


def four_bit_storage_is_the_dtype(recipe: Recipe) -> Iterator[Finding]:
    """ZeRO-3 gathers weights of one type at a time; stored otherwise, 4-bit codes go apart."""
    storage = (recipe.quantization or {}).get("bnb_4bit_quant_storage")
    if _is_partitioned(recipe) and storage not in (None, recipe.model.dtype):
        what = (
            f"ZeRO-3 gathers 4-bit codes as {recipe.model.dtype}, and they are stored as {storage}"
        )
        path = "quantization.bnb_4bit_quant_storage"
        yield Finding((path, "train.deepspeed"), what, f"write {path}: {recipe.model.dtype}")


def checkpointing_is_reentrant(recipe: Recipe) -> Iterator[Finding]:
    """Under ZeRO-3 a recomputed layer finds its weights released (TRL 1.16 switches silently)."""
    name = "train.activation_checkpointing_kwargs"
    chosen = (recipe.train.get("activation_checkpointing_kwargs") or {}).get("use_reentrant")
    if _is_partitioned(recipe) and chosen is False:
        what = "adapters under ZeRO-3 need the reentrant form of activation checkpointing"
        yield Finding((name, "train.deepspeed"), what, f"delete {name}")


def single_tokens_are_not_partitioned(recipe: Recipe) -> Iterator[Finding]:
    """PEFT takes the rows to train out of an embedding that no process holds whole; it can do so
    on CUDA alone (0.21 `TrainableTokensLayer._collect_token_weights`), and nothing proves it."""
    name = "adapter.trainable_token_indices"
    if _is_partitioned(recipe) and recipe.adapter.lora.get("trainable_token_indices"):
        what = "single tokens cannot be trained where the embedding is spread (ZeRO-3)"
        fix = "write train.deepspeed: zero2, or adapter.modules_to_save: [embed_tokens, lm_head]"
        yield Finding((name, "train.deepspeed"), what, fix)


def an_optimizer_may_see_flat_shares(recipe: Recipe) -> Iterator[Finding]:
    """ZeRO gives it one long vector with a piece of every matrix; another world, another run."""
    optimizer = recipe.train.get("optim")
    is_flat = recipe.train.get("deepspeed") is not None
    if is_flat and optimizer is not None and str(optimizer) not in ELEMENTWISE:
        what = f"{optimizer} looks at whole matrices, and ZeRO shows it flat shares of all of them"
        fix = "write train.optim: adamw_torch_fused"
        yield Finding(("train.optim", "train.deepspeed"), what, fix)


def one_way_to_spread_the_model(recipe: Recipe) -> Iterator[Finding]:
    """FSDP and DeepSpeed both take the model apart."""
    if recipe.train.get("deepspeed") is not None and recipe.train.get("fsdp"):
        what = "train.fsdp and train.deepspeed both spread the model"
        yield Finding(("train.fsdp", "train.deepspeed"), what, "delete train.fsdp")


def _read_policy(recipe: Recipe) -> Policy | None:
    try:
        return read_policy(recipe)
    except (OSError, ValueError):
        return None  # the first rule has said so


def _is_partitioned(recipe: Recipe) -> bool:
    policy = _read_policy(recipe)
    return policy is not None and policy.zero_stage == PARTITIONED_STAGE
