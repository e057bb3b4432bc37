"""The only door to bitsandbytes: quantise a base, find its quantised parameters, dequantise it.

NF4 with double quantisation is the storage of QLoRA (Dettmers et al. 2023, arXiv 2305.14314,
section 3). The settings have the names of transformers' `BitsAndBytesConfig`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from lora_sft.errors import ModelError
from lora_sft.model.partitioning import count_elements
from lora_sft.model_files.module_patterns import is_plain
from lora_sft.recipe.optional_packages import BITSANDBYTES, check_package

CPU_REPACKING_SWITCH = "support_avx512bf16_for_cpu"  # an attribute of bitsandbytes' Linear4bit


def make_quantization_config(
    fields: Mapping[str, Any], dtype: torch.dtype, where: str, *, store_in_dtype: bool = False
) -> BitsAndBytesConfig:
    """Return the library's config. By default, 4-bit layers compute in the base's dtype.

    Args:
        fields: Settings of BitsAndBytesConfig.
        dtype: The dtype of the base.
        where: The place for error messages.
        store_in_dtype: Store 4-bit codes in tensors of `dtype`. The bits are the same. ZeRO-3 needs
            this, because it gathers all weights of a layer in one dtype.

    Raises:
        CapabilityError: With the install command, if bitsandbytes is missing.
        ModelError: If `llm_int8_skip_modules` holds more than names: transformers matches each of
            them as a regular expression, and has no limit on the time.
    """
    for name in fields.get("llm_int8_skip_modules") or ():
        if not is_plain(str(name)):
            raise ModelError(
                f'llm_int8_skip_modules: "{name}" is not the name of a module',
                where,
                "write the names of the modules, without * + ? ( ) [ ] { }",
            )
    check_package(BITSANDBYTES, "quantization", where)
    settings = dict(fields)
    if settings.get("load_in_4bit"):
        settings.setdefault("bnb_4bit_compute_dtype", dtype)
        if store_in_dtype and settings.get("bnb_4bit_quant_storage") is None:
            settings["bnb_4bit_quant_storage"] = dtype
    return BitsAndBytesConfig(**settings)


def is_quantized(model: torch.nn.Module) -> bool:
    """Return whether transformers loaded this base quantised."""
    return bool(getattr(model, "is_quantized", False))


def is_quantized_parameter(parameter: torch.nn.Parameter) -> bool:
    """Return whether this parameter holds packed 4-bit or 8-bit codes instead of weights."""
    return type(parameter).__name__ in {"Params4bit", "Int8Params"}


def count_weights(parameter: torch.nn.Parameter) -> int:
    """Return the number of weights in a parameter. 4-bit storage packs several into one element."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else count_elements(parameter)


def keep_codes_unpacked(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit codes at the first forward pass of inference.

    It does this on CPUs with AVX512-BF16 (0.50.2, `Linear4bit.forward`). Repacked layers pass no
    gradient when training continues after an evaluation. They dequantise to wrong numbers, and they
    fail for widths that are not a multiple of 64. There is no message in any of these cases. The
    original layout is always right, but slower on these CPUs.
    """
    for module in model.modules():
        if hasattr(module, CPU_REPACKING_SWITCH):
            setattr(module, CPU_REPACKING_SWITCH, False)


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return the base with plain weights: the values that the adapter saw in training.

    This works at any time, because `keep_codes_unpacked` prevents changes of the codes.
    """
    model.dequantize(dtype=dtype)
    return model


class LayerQuantizer:
    """Quantises and dequantises the layers of a base one at a time, as loading would.

    The model has no weights (torch's meta device). It only shows which layers are quantised. Each
    weight is quantised, or read from stored codes, and then dequantised at once. Later,
    bitsandbytes could repack the codes.

    Source: transformers 5.23 `replace_with_bnb_linear`, `Bnb4bitQuantize`, `Bnb4bitDeserialize`,
    the same classes for 8 bits, and `dequantize_bnb_weight`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        fields: Mapping[str, Any],
        dtype: torch.dtype,
        *,
        are_stored: bool = False,
    ) -> None:
        """Prepare the quantiser.

        Args:
            model: A model without weights.
            fields: Settings of BitsAndBytesConfig. If `are_stored`, those in the base's config.
            dtype: The dtype of the base.
            are_stored: The base is stored quantised.

        Raises: CapabilityError if bitsandbytes is missing.
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

    def quantize_and_dequantize(self, parameter: str, values: torch.Tensor) -> torch.Tensor:
        """Return a layer's weight [out, in] after quantisation and dequantisation."""
        operation = self._quantizer.get_quantize_ops()
        given = {parameter: [values.to(self._dtype).to(self._device)]}
        made = operation.convert(given, full_layer_name=parameter, model=self._model)
        return self._dequantize(parameter, made[parameter])

    def unpack(self, parameter: str, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weight of a layer that is stored as codes.

        Args:
            parameter: The name of the weight.
            stored: The tensors in which it is stored, including `weight`.
        """
        operation = self._quantizer.get_load_operations()["deserialize"](self._quantizer)
        given: dict[str, Any] = {name: [tensor.to(self._device)] for name, tensor in stored.items()}
        made = operation.convert(given, full_layer_name=parameter, model=self._model)
        return self._dequantize(parameter, made["weight"])

    def _dequantize(self, parameter: str, codes: Any) -> torch.Tensor:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        scales = SimpleNamespace(SCB=getattr(codes, "SCB", None))
        values = dequantize_bnb_weight(codes, scales).to("cpu").to(self._dtype)
        layer: Any = self._model.get_submodule(parameter.removesuffix(".weight"))
        # The codes of a Conv1D are those of its transposed weight.
        return values.T if layer.source_cls.__name__ == "Conv1D" else values


def find_quantizing_device() -> torch.device:
    """Return the device on which codes are made: a GPU if this machine has one, as in training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
