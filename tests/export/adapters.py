"""Make tiny base models, and adapters of every kind that PEFT saves, with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.tiny import make_tiny_llama, make_tokenizer

IDS = torch.arange(40, 60)[None]


def make_tiny_gpt2(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    size = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    ends = {"bos_token_id": 1, "eos_token_id": 5}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_moe(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MAKERS: Mapping[str, Callable[[Path], Path]] = {
    "llama": make_tiny_llama,
    "tied llama": lambda folder: make_tiny_llama(folder, tied=True),
    "gpt2": make_tiny_gpt2,
    "moe": make_tiny_moe,
}


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    Attributes:
        base: The base model, a key of MAKERS.
        lora: The fields of its LoraConfig.
        resized_tokens: The size of the vocabulary that it resizes the base model to.
        config: Fields that the merged model's config must have.
    """

    name: str
    base: str
    lora: Mapping[str, Any]
    resized_tokens: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def save(*modules: str) -> dict[str, list[str]]:
    return {"modules_to_save": list(modules)}


def tokens(*indices: int) -> dict[str, list[int]]:
    return {"trainable_token_indices": list(indices)}


ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
BOTH = ["embed_tokens", "lm_head"]
KINDS = (
    Kind("plain", "llama", {"target_modules": "all-linear"}),
    Kind("rank-stabilised", "llama", {"target_modules": "all-linear", "use_rslora": True}),
    Kind(
        "rank and alpha patterns",
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.down_proj": 2},
            "alpha_pattern": {"v_proj": 3, r".*\.0\.mlp\.up_proj": 64},
        },
    ),
    Kind("DoRA", "llama", {"target_modules": "all-linear", "use_dora": True}),
    Kind("DoRA, rank-stabilised", "llama", {**ATTENTION, "use_dora": True, "use_rslora": True}),
    Kind("embedding and head", "llama", {"target_modules": ["q_proj", *BOTH]}),
    Kind("embedding and head, DoRA", "llama", {"target_modules": BOTH, "use_dora": True}),
    Kind("norms trained whole", "llama", {**ATTENTION, **save("input_layernorm")}),
    Kind("embedding and head trained whole", "llama", {**ATTENTION, **save(*BOTH)}),
    Kind("some tokens", "llama", {**ATTENTION, **tokens(7, 300, 2)}),
    Kind(
        "some tokens of embedding and head",
        "llama",
        {**ATTENTION, "trainable_token_indices": {"embed_tokens": [7, 9], "lm_head": [9, 8, 1]}},
    ),
    Kind("resized", "llama", ATTENTION, 408, {"vocab_size": 408}),
    Kind(
        "resized and trained whole",
        "llama",
        {**ATTENTION, **save(*BOTH)},
        408,
        {"vocab_size": 408},
    ),
    Kind(
        "resized, some tokens",
        "llama",
        {**ATTENTION, **tokens(401, 402)},
        408,
        {"vocab_size": 408},
    ),
    Kind("tied, layers only", "tied llama", {"target_modules": "all-linear"}, None, TIED),
    Kind("tied, embedding", "tied llama", {"target_modules": ["embed_tokens"]}, None, UNTIED),
    Kind("tied, head", "tied llama", {"target_modules": ["lm_head", "q_proj"]}, None, UNTIED),
    Kind(
        "tied, equal changes to both",
        "tied llama",
        {"target_modules": BOTH, "ensure_weight_tying": True},
        None,
        TIED,
    ),
    Kind(
        "tied, whole head",
        "tied llama",
        {**ATTENTION, "modules_to_save": ["lm_head"]},
        None,
        UNTIED,
    ),
    Kind("tied, both whole", "tied llama", {**ATTENTION, **save(*BOTH)}, None, UNTIED),
    Kind(
        "tied, whole embedding that stays tied",
        "tied llama",
        {**ATTENTION, **save("embed_tokens"), "ensure_weight_tying": True},
        None,
        TIED,
    ),
    Kind(
        "tied, some tokens", "tied llama", {**ATTENTION, "trainable_token_indices": [7]}, None, TIED
    ),
    Kind("tied, resized", "tied llama", ATTENTION, 408, {"vocab_size": 408, **TIED}),
    Kind(
        "tied, resized, some tokens",
        "tied llama",
        {**ATTENTION, **tokens(401, 402)},
        408,
        {"vocab_size": 408, **TIED},
    ),
    Kind("Conv1D", "gpt2", {"target_modules": "all-linear"}),
    Kind("Conv1D, square only", "gpt2", {"target_modules": r".*attn\.c_proj"}),
    Kind("Conv1D, DoRA", "gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    Kind("Conv1D and head", "gpt2", {"target_modules": ["c_proj", "lm_head"]}, None, UNTIED),
    Kind("Conv1D and embedding", "gpt2", {"target_modules": ["wte", "c_attn"]}, None, UNTIED),
    Kind("trained biases", "gpt2", {"target_modules": ["c_attn", "c_proj"], "bias": "all"}),
    Kind("adapted layers' biases", "gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    Kind("added biases", "gpt2", {"target_modules": ["c_attn", "c_proj"], "lora_bias": True}),
    Kind(
        "stacked experts",
        "moe",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    Kind("one expert parameter", "moe", {"target_modules": [], "target_parameters": ["down_proj"]}),
    Kind("all linear layers of experts", "moe", {"target_modules": "all-linear"}),
)


def make_adapter(
    base: Path,
    folder: Path,
    lora: Mapping[str, Any],
    *,
    resized_tokens: int | None = None,
    scale: float = 0.05,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Save an adapter with random changes to every number, and return its logits for IDS."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    torch.manual_seed(seed)
    if resized_tokens:
        model.resize_token_embeddings(resized_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **lora}))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += scale * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted.eval()(IDS).logits


def answer(folder: Path, dtype: Any = "auto") -> torch.Tensor:
    """Return the logits for IDS of a model folder that plain transformers loads."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(IDS).logits
