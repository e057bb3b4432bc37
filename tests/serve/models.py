"""Small random models whose answers are readable text of any length."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import make_tiny_llama


def make_answering_model(folder: Path, *, context_tokens: int = 512) -> Path:
    """Save a random Llama whose greedy answers are ASCII letters and digits without an end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tiny_llama(folder, context_tokens=context_tokens)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = set(tokenizer.all_special_ids)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    unwanted = [
        i
        for i, text in enumerate(texts)
        if i in special or not (text.isascii() and text.strip().isalnum())
    ]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 8.0  # so that the answer depends on every token of the prompt
        model.lm_head.weight[unwanted] = 0.0  # so that this logit is never the largest
    model.save_pretrained(folder)
    return folder


def make_answering_adapter(base: Path, folder: Path) -> Path:
    """Save an adapter that changes the answers of `base`, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
