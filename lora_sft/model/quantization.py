"""The one door to bitsandbytes: quantising a base, knowing what is quantised, undoing it.

NF4 with double quantisation is QLoRA's storage (Dettmers et al. 2023, arXiv 2305.14314,
section 3); the fields are transformers' `BitsAndBytesConfig`, unrenamed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from lora_sft.errors import CapabilityError

CPU_REPACKING_SWITCH = "support_avx512bf16_for_cpu"  # on bitsandbytes' Linear4bit


def make_quantization_config(
    fields: Mapping[str, Any], dtype: torch.dtype, where: str
) -> BitsAndBytesConfig:
    """The library's config object; 4-bit matmuls compute in the base's dtype unless told.

    Raises: CapabilityError (with the install command) where bitsandbytes is missing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CapabilityError(
            "quantization needs bitsandbytes, which is not installed",
            where,
            "pip install 'lora-sft[qlora]'",
        )
    settings = dict(fields)
    if settings.get("load_in_4bit"):
        settings.setdefault("bnb_4bit_compute_dtype", dtype)
    return BitsAndBytesConfig(**settings)


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether transformers loaded this base quantised."""
    return bool(getattr(model, "is_quantized", False))


def is_quantized_parameter(parameter: torch.nn.Parameter) -> bool:
    """Whether this parameter holds packed 4-bit or 8-bit codes instead of numbers."""
    return type(parameter).__name__ in {"Params4bit", "Int8Params"}


def count_unpacked(parameter: torch.nn.Parameter) -> int:
    """Number of weights a parameter stands for (4-bit storage packs several into an element)."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def keep_codes_unpacked(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit codes in place at the first inference forward.

    It does so on CPUs with AVX512-BF16 (0.50.2, `Linear4bit.forward`). Repacked layers pass no
    gradient when training goes on after an evaluation, dequantise to garbage, and fail for
    widths that are no multiple of 64; none of it says a word. The plain layout is right
    everywhere, so the speed of that one path is given up.
    """
    for module in model.modules():
        if hasattr(module, CPU_REPACKING_SWITCH):
            setattr(module, CPU_REPACKING_SWITCH, False)


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The base as the adapter saw it in training: every packed layer as plain numbers.

    Right at any time, because `keep_codes_unpacked` leaves the codes as they were loaded.
    """
    model.dequantize(dtype=dtype)
    return model
