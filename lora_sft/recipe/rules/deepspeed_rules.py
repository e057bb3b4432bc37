"""Rules about a recipe in which DeepSpeed divides the model among the processes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lora_sft.recipe.deepspeed_policy import Policy, list_contradictions, read_policy
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding

# In this ZeRO stage, each process holds only its share of the parameters.
PARTITIONED_STAGE = 3


# ZeRO gives the optimizer one flat vector with parts of all weights. The optimizers in this set can
# use it: they update each number separately, or (with 8 bits) each block of a few hundred numbers.
# Other optimizers need whole matrices, or their rows, columns or norms.
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


def policy_is_json(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a DeepSpeed file that cannot be read.

    Otherwise DeepSpeed would report this in every process, and only after the data preparation.
    """
    try:
        read_policy(recipe)
    except (OSError, ValueError) as error:
        what = f"the DeepSpeed file cannot be read: {error}"
        yield Finding(
            ("train.deepspeed",), what, "write train.deepspeed: zero2, or correct the file"
        )


def policy_agrees_with_the_recipe(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a policy that contradicts the recipe: the run would silently use one of the two."""
    policy = _read_policy(recipe)
    if policy is None:
        return
    for name, path, value in list_contradictions(policy, recipe):
        here = recipe.where(path).rpartition("  ")[0]
        what = (
            f"{policy.source} sets {name}: {json.dumps(value)}, but only {path} ({here}) "
            "may set this"
        )
        fix = f'write "{name}": "auto"' if not isinstance(value, dict) else f'delete "{name}"'
        yield Finding(("train.deepspeed", path), what, f"{fix} in {policy.source}")


def deepspeed_runs_without_float16(recipe: Recipe) -> Iterator[Finding]:
    """Refuse float16 with DeepSpeed.

    DeepSpeed scales float16 losses in its own way. No test shows that the result equals that of one
    process.
    """
    if recipe.train.get("deepspeed") is None:
        return
    for path in ("model.dtype", "train.fp16"):
        asked = (
            recipe.model.dtype == "float16" if path == "model.dtype" else recipe.train.get("fp16")
        )
        if asked:
            what = "float16 with DeepSpeed may not give the same results as one process"
            fix = "write model.dtype: bfloat16, or leave out train.deepspeed"
            yield Finding((path, "train.deepspeed"), what, fix)


def zero3_runs_without_8bit_weights(recipe: Recipe) -> Iterator[Finding]:
    """Refuse 8-bit weights with ZeRO-3.

    bitsandbytes keeps the scales of int8 weights beside the weights, and ZeRO-3 loses them.
    """
    settings = recipe.quantization or {}
    if _is_partitioned(recipe) and settings.get("load_in_8bit"):
        what = "8-bit weights cannot be divided among processes (ZeRO-3)"
        fix = "write quantization: nf4, or train.deepspeed: zero2"
        yield Finding(("quantization", "train.deepspeed"), what, fix)


def zero3_stores_4bit_codes_in_model_dtype(recipe: Recipe) -> Iterator[Finding]:
    """Refuse 4-bit codes whose storage dtype differs from `model.dtype`, with ZeRO-3.

    ZeRO-3 gathers only weights of the same dtype together.
    """
    storage = (recipe.quantization or {}).get("bnb_4bit_quant_storage")
    if _is_partitioned(recipe) and storage not in (None, recipe.model.dtype):
        what = (
            f"ZeRO-3 needs 4-bit codes stored as {recipe.model.dtype} (model.dtype), "
            f"not as {storage}"
        )
        path = "quantization.bnb_4bit_quant_storage"
        yield Finding((path, "train.deepspeed"), what, f"write {path}: {recipe.model.dtype}")


def zero3_uses_reentrant_checkpointing(recipe: Recipe) -> Iterator[Finding]:
    """Refuse non-reentrant activation checkpointing with ZeRO-3.

    When it recomputes a layer, the layer's weights are already released. TRL 1.16 changes the
    setting silently.
    """
    name = "train.activation_checkpointing_kwargs"
    chosen = (recipe.train.get("activation_checkpointing_kwargs") or {}).get("use_reentrant")
    if _is_partitioned(recipe) and chosen is False:
        what = "adapters under ZeRO-3 need the reentrant form of activation checkpointing"
        yield Finding((name, "train.deepspeed"), what, f"delete {name}")


def zero3_runs_without_trained_tokens(recipe: Recipe) -> Iterator[Finding]:
    """Refuse the training of single tokens with ZeRO-3.

    PEFT takes the rows to train from the embedding, and no process holds the whole embedding. PEFT
    can do this on CUDA only (0.21 `TrainableTokensLayer._collect_token_weights`). No test shows
    that the result is right.
    """
    name = "adapter.trainable_token_indices"
    if _is_partitioned(recipe) and recipe.adapter.lora.get("trainable_token_indices"):
        what = "single tokens cannot be trained if the embedding is divided (ZeRO-3)"
        fix = "write train.deepspeed: zero2, or adapter.modules_to_save: [embed_tokens, lm_head]"
        yield Finding((name, "train.deepspeed"), what, fix)


def deepspeed_has_an_elementwise_optimizer(recipe: Recipe) -> Iterator[Finding]:
    """Refuse an optimizer that needs whole matrices, with DeepSpeed.

    ZeRO gives the optimizer one flat vector with parts of all matrices. So the result would depend
    on the world size.
    """
    optimizer = recipe.train.get("optim")
    is_flat = recipe.train.get("deepspeed") is not None
    if is_flat and optimizer is not None and str(optimizer) not in ELEMENTWISE:
        what = f"{optimizer} needs whole matrices, but ZeRO divides them among processes"
        fix = "write train.optim: adamw_torch_fused"
        yield Finding(("train.optim", "train.deepspeed"), what, fix)


def deepspeed_runs_without_fsdp(recipe: Recipe) -> Iterator[Finding]:
    """Refuse FSDP and DeepSpeed together: both divide the model."""
    if recipe.train.get("deepspeed") is not None and recipe.train.get("fsdp"):
        what = "train.fsdp and train.deepspeed both divide the model among the processes"
        yield Finding(("train.fsdp", "train.deepspeed"), what, "delete train.fsdp")


def _read_policy(recipe: Recipe) -> Policy | None:
    """Return the DeepSpeed policy, or None if the recipe has no readable policy."""
    try:
        return read_policy(recipe)
    except (OSError, ValueError):
        return None  # `policy_is_json` reports this


def _is_partitioned(recipe: Recipe) -> bool:
    policy = _read_policy(recipe)
    return policy is not None and policy.zero_stage == PARTITIONED_STAGE
