"""Read the base model in the form that the adapter is merged onto: as stored, or as in training.

In the training of a QLoRA adapter, the base model is quantised once and dequantised in every
forward pass (Dettmers et al. 2023, arXiv 2305.14314, eq. 5). This module computes the same values,
one tensor at a time. It always quantises again: on some CPUs bitsandbytes repacks the codes of a
loaded layer at its first inference, and dequantising repacked codes gives wrong values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from lora_sft.errors import ExportError
from lora_sft.export.weights.parameter_names import ParameterNames
from lora_sft.export.weights.tensor_reading import TensorReader, name_dtype
from lora_sft.model_files.base_checkpoint import BaseCheckpoint
from lora_sft.model_files.stored_tensors import DTYPE_CODES, StoredTensor

# Suffixes of the tensors that bitsandbytes stores beside a layer's `weight` (transformers 5.23
# `serialized_names`).
CODE_MARKS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
STATE_MARK = ".quant_state.bitsandbytes__"
SCALES_MARK, FORMAT_MARK = ".SCB", ".weight_format"


class BaseForm(Protocol):
    """The tensors of the base model before the adapter is added.

    Attributes:
        base: The base model. Its tensors have the shapes and dtypes of their values, not of codes.
    """

    base: BaseCheckpoint

    def is_as_stored(self, tensor: StoredTensor) -> bool:
        """Return whether a tensor is used as it is stored."""

    def read_values(self, tensor: StoredTensor, reader: TensorReader) -> torch.Tensor | None:
        """Return the values of a tensor that is not used as stored, else None."""


class StoredForm:
    """The base model as it is stored."""

    def __init__(self, base: BaseCheckpoint) -> None:
        self.base = base

    def is_as_stored(self, tensor: StoredTensor) -> bool:
        return True

    def read_values(self, tensor: StoredTensor, reader: TensorReader) -> torch.Tensor | None:
        return None


class TrainedForm:
    """The base model as in training.

    Quantised layers are quantised and dequantised. All other tensors get the dtype of training.
    """

    def __init__(
        self, names: ParameterNames, fields: Mapping[str, Any], dtype: torch.dtype
    ) -> None:
        from lora_sft.model.quantization import LayerQuantizer

        self.base = names.base
        self._dtype = dtype
        self._rounds_main_dtype = names.base.main_dtype_name != name_dtype(dtype)
        self._codes = LayerQuantizer(names.model, fields, dtype)
        self._parameters = {
            piece.tensor: parameter
            for parameter in self._codes.parameters
            for piece in names.find(parameter)
        }

    def is_as_stored(self, tensor: StoredTensor) -> bool:
        return tensor not in self._parameters and not self._is_rounded(tensor)

    def _is_rounded(self, tensor: StoredTensor) -> bool:
        ours = self.base.tensors.get(tensor.name) == tensor
        return self._rounds_main_dtype and ours and tensor.dtype_name == self.base.main_dtype_name

    def read_values(self, tensor: StoredTensor, reader: TensorReader) -> torch.Tensor | None:
        parameter = self._parameters.get(tensor)
        if parameter is not None:
            return self._codes.quantize_and_dequantize(parameter, reader.read(tensor))
        return reader.read(tensor).to(self._dtype) if self._is_rounded(tensor) else None


class UnpackedForm:
    """A base model that bitsandbytes stored quantised, in its dequantised form."""

    def __init__(
        self, base: BaseCheckpoint, dtype: torch.dtype, *, trust_remote_code: bool = False
    ) -> None:
        """Find the parts of every quantised layer.

        Raises: ExportError if the weight of a quantised layer is missing.
        """
        from lora_sft.model.quantization import LayerQuantizer

        names = ParameterNames(base, trust_remote_code=trust_remote_code)
        fields = base.config["quantization_config"]
        fields = {name: value for name, value in fields.items() if name != "quant_method"}
        self._codes = LayerQuantizer(names.model, fields, dtype, are_stored=True)
        self._parts: dict[str, dict[str, StoredTensor]] = {}
        kept: dict[str, StoredTensor] = {}
        for name, tensor in base.tensors.items():
            layer, part = _split_part(name)
            if part:
                self._parts.setdefault(layer, {})[part] = tensor
            else:
                kept[name] = tensor
        self._packed: dict[StoredTensor, str] = {}
        for name in self._parts:
            if name not in kept:
                raise ExportError(
                    f"the base model holds parts of {name}, but not the weight itself",
                    base.location,
                    "download the base model again",
                )
            shape = tuple(names.model.get_parameter(name).shape)
            unpacked = replace(kept[name], shape=shape, dtype_code=DTYPE_CODES[name_dtype(dtype)])
            self._parts[name]["weight"] = kept[name]
            kept[name] = unpacked
            self._packed[unpacked] = name
        self.base = replace(base, tensors=kept)

    def is_as_stored(self, tensor: StoredTensor) -> bool:
        return tensor not in self._packed

    def read_values(self, tensor: StoredTensor, reader: TensorReader) -> torch.Tensor | None:
        name = self._packed.get(tensor)
        if name is None:
            return None
        stored = {part: reader.read(each) for part, each in self._parts[name].items()}
        return self._codes.unpack(name, stored)


def _split_part(name: str) -> tuple[str, str]:
    """Split the name of a tensor of a quantised layer into the weight's name and the part's key.

    The key is empty for all other tensors.
    """
    for mark in CODE_MARKS:
        if name.endswith(mark):
            return name.removesuffix(mark), f"weight{mark}"
    if STATE_MARK in name:
        layer, _, kind = name.partition(STATE_MARK)
        return layer, f"weight{STATE_MARK}{kind}"
    for mark in (SCALES_MARK, FORMAT_MARK):
        if name.endswith(mark):
            return f"{name.removesuffix(mark)}.weight", mark.removeprefix(".")
    return name, ""


def choose_base_form(
    base: BaseCheckpoint,
    onto: str,
    quantization: Mapping[str, Any] | None,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
) -> BaseForm:
    """Return the base model in the form for `onto`. A model that is stored quantised is unpacked.

    Raises: ExportError if the stored quantisation cannot be unpacked.
    """
    if base.stored_quantization is not None:
        if base.stored_quantization != "bitsandbytes":
            raise ExportError(
                f"the base model is stored quantised by {base.stored_quantization}, and adapters "
                "cannot be merged into such weights",
                base.location,
                "give the unquantised base model with --base PATH, or serve the adapter without "
                "merging it",
            )
        return UnpackedForm(base, dtype, trust_remote_code=trust_remote_code)
    if onto == "dequantized" and quantization:
        names = ParameterNames(base, trust_remote_code=trust_remote_code)
        return TrainedForm(names, quantization, dtype)
    return StoredForm(base)
