"""Check that a config does not describe a much larger model than its files hold.

transformers makes every weight that the files lack, and reports it afterwards. A damaged number in
a config would so take all memory, or all time, before the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from lora_sft.errors import ModelError
from lora_sft.file_names import MODEL_CONFIG_FILE
from lora_sft.model_files.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint

MOST_PARAMETERS_PER_BYTE = 8  # of a stored quantisation: one bit per parameter
SIZE_MARGIN = 2  # tied weights are stored once
SIZE_SLACK = 10**8  # elements of buffers that are not stored; a tiny model may have few others


def check_described_layers(config: Any, stored: BaseCheckpoint) -> None:
    """Check that a model has no more layers than its files have tensors.

    Raises: ModelError if it has.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(stored.tensors):
        _refuse(stored, f"{layers:,} layers", f"{len(stored.tensors):,} tensors")


def check_described_parameters(build: Callable[[], Any], stored: BaseCheckpoint) -> None:
    """Check that a model does not have many more parameters than its files.

    Args:
        build: Makes the model without weights, on torch's meta device.
        stored: The model's files.

    Raises: ModelError if it has.
    """
    model = build()
    described = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    most = (
        MOST_PARAMETERS_PER_BYTE * stored.num_bytes
        if stored.stored_quantization
        else sum(each.num_elements for each in stored.tensors.values())
    )
    if described > SIZE_MARGIN * most + SIZE_SLACK:
        _refuse(stored, f"{described:,} parameters", f"at most {most:,}")


def _refuse(stored: BaseCheckpoint, described: str, held: str) -> NoReturn:
    raise ModelError(
        f"{MODEL_CONFIG_FILE} describes a model with {described}, and its files hold {held}",
        stored.location,
        DOWNLOAD_AGAIN,
    )
