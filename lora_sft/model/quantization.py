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

# bitsandbytes' CPU path packs 4-bit weights in blocks of this many columns and fails on others.
CPU_BLOCK_COLUMNS = 64


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


def check_widths_for_cpu(model: PreTrainedModel, where: str) -> None:
    """Refuse a 4-bit base on the CPU whose layers bitsandbytes cannot compute there.

    Raises: CapabilityError naming the first layer whose input width is not a multiple of 64;
    bitsandbytes 0.50 itself fails later, inside a forward, with `shape '[32, 0]' is invalid`.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
            continue
        if module.in_features % CPU_BLOCK_COLUMNS or module.out_features % CPU_BLOCK_COLUMNS:
            raise CapabilityError(
                f"{name} is {module.out_features} x {module.in_features}: bitsandbytes computes "
                f"4-bit layers on a CPU only in multiples of {CPU_BLOCK_COLUMNS}",
                where,
                "set quantization: null, or train on a GPU",
            )


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The base as the adapter saw it in training: every packed layer as plain numbers.

    Only for a freshly loaded model: the first inference forward on a CPU repacks the codes in
    place, and what is dequantised after that is garbage (bitsandbytes 0.50.2).
    """
    model.dequantize(dtype=dtype)
    return model
