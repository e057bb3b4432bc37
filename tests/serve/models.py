"""Models that answer something: random weights that speak ASCII and do not stop by themselves."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import make_tiny_llama


def make_shouting_model(folder: Path, *, context_tokens: int = 512) -> Path:
    """A random Llama whose greedy answers are letters and do not end by themselves."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tiny_llama(folder, context_tokens=context_tokens)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = set(tokenizer.all_special_ids)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    silent = [
        i
        for i, text in enumerate(texts)
        if i in special or not (text.isascii() and text.strip().isalnum())
    ]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 8.0  # so that every token of the prompt has a say in the answer
        model.lm_head.weight[silent] = 0.0  # never the largest logit
    model.save_pretrained(folder)
    return folder


def make_shouting_adapter(base: Path, folder: Path) -> Path:
    """An adapter, with its tokenizer, that changes what `base` answers."""
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
