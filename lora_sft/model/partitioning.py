"""What ZeRO-3 changes about a model's parameters, seen without importing DeepSpeed.

A partitioned parameter is an empty tensor whose true shape DeepSpeed keeps in `ds_shape` and
`ds_numel` (0.19 `partition_parameters.Init._convert_to_deepspeed_param`); this process holds a
share of its numbers. Whether a run is partitioned is known as soon as its arguments are built.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled


def is_partitioned() -> bool:
    """Whether models are loaded in shares (ZeRO-3) from here on."""
    return bool(is_deepspeed_zero3_enabled())


def count_elements(parameter: torch.nn.Parameter) -> int:
    """Number of stored elements of the whole parameter, whatever this process holds of it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def find_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, whatever this process holds of it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def count_local_bytes(parameter: torch.nn.Parameter) -> int:
    """Bytes of a parameter that this process holds between two steps: its share, or the whole."""
    share = getattr(parameter, "ds_tensor", None)
    tensor = parameter if share is None or parameter.numel() else share
    return tensor.numel() * tensor.element_size()


@contextmanager
def partitioned_in(dtype: torch.dtype) -> Iterator[None]:
    """Have a model that is loaded inside partitioned in its own dtype.

    DeepSpeed makes every parameter float32 unless its `bf16` section is on
    (`zero.Init._set_dtype`), twice the memory of a bfloat16 base. Later the section must be off:
    it would cast the adapter too.
    """
    config = deepspeed_config() if is_partitioned() else None
    if config is None or dtype != torch.bfloat16:
        yield
        return
    before = config.get("bf16")
    config["bf16"] = {"enabled": True}
    try:
        yield
    finally:
        config["bf16"] = before if before is not None else {"enabled": False}
