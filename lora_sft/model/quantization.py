"""The one door to bitsandbytes: quantising a base, knowing what is quantised, undoing it.

NF4 with double quantisation is QLoRA's storage (Dettmers et al. 2023, arXiv 2305.14314,
section 3); the fields are transformers' `BitsAndBytesConfig`, unrenamed.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from lora_sft.errors import CapabilityError
from lora_sft.model.partitioning import count_elements

CPU_REPACKING_SWITCH = "support_avx512bf16_for_cpu"  # on bitsandbytes' Linear4bit


def make_quantization_config(
    fields: Mapping[str, Any], dtype: torch.dtype, where: str, *, stored_alike: bool = False
) -> BitsAndBytesConfig:
    """The library's config object; 4-bit matmuls compute in the base's dtype unless told.

    `stored_alike`: the 4-bit codes lie in tensors of the base's dtype (the bits are the same), for
    what gathers all weights of a layer as one type.

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
        if stored_alike and settings.get("bnb_4bit_quant_storage") is None:
            settings["bnb_4bit_quant_storage"] = dtype
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
    return int(torch.Size(state.shape).numel()) if state is not None else count_elements(parameter)


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


class LayerCodes:
    """Quantises a base's layers one at a time as loading would, and gives their numbers back.

    The model has no weights (torch's meta device): it only tells which layers are quantised.
    Every layer is quantised anew, or unpacked from the codes that the base is stored in, and
    dequantised at once, before anything could repack it.

    Source: transformers 5.23 `replace_with_bnb_linear`, `Bnb4bitQuantize`, `Bnb4bitDeserialize` and
    their 8-bit twins, `dequantize_bnb_weight`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        fields: Mapping[str, Any],
        dtype: torch.dtype,
        *,
        are_stored: bool = False,
    ) -> None:
        """`are_stored`: the base is stored quantised, and `fields` is what its config says.

        Raises: CapabilityError where bitsandbytes is missing.
        """
        from transformers.quantizers.auto import AutoHfQuantizer

        config = make_quantization_config(fields, dtype, "quantization")
        self._quantizer = AutoHfQuantizer.from_config(config, pre_quantized=are_stored)
        self._model = copy.deepcopy(model)
        self._quantizer.preprocess_model(self._model, device_map={"": "cpu"})
        self._dtype = dtype
        self._device = find_quantizing_device()
        self.parameters = tuple(
            f"{name}.weight"
            for name, module in self._model.named_modules()
            if type(module).__name__ in {"Linear4bit", "Linear8bitLt"}
        )

    def quantize_and_back(self, parameter: str, values: torch.Tensor) -> torch.Tensor:
        """What is left of a layer's weight once it is quantised: [out, in] stays as it came."""
        operation = self._quantizer.get_quantize_ops()
        given = {parameter: [values.to(self._dtype).to(self._device)]}
        made = operation.convert(given, full_layer_name=parameter, model=self._model)
        return self._dequantize(parameter, made[parameter])

    def unpack(self, parameter: str, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The numbers of a layer from the tensors that it is stored in, `weight` among them."""
        operation = self._quantizer.get_load_operations()["deserialize"](self._quantizer)
        given: dict[str, Any] = {name: [tensor.to(self._device)] for name, tensor in stored.items()}
        made = operation.convert(given, full_layer_name=parameter, model=self._model)
        return self._dequantize(parameter, made["weight"])

    def _dequantize(self, parameter: str, codes: Any) -> torch.Tensor:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        scales = SimpleNamespace(SCB=getattr(codes, "SCB", None))
        values = dequantize_bnb_weight(codes, scales).to("cpu").to(self._dtype)
        layer: Any = self._model.get_submodule(parameter.removesuffix(".weight"))
        # codes of a Conv1D are those of its transpose
        return values.T if layer.source_cls.__name__ == "Conv1D" else values


def find_quantizing_device() -> torch.device:
    """Where codes are made: a GPU where there is one, as in training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
