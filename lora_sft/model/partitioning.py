"""Read the parameters of a model that ZeRO-3 may have partitioned, without importing DeepSpeed.

A partitioned parameter is an empty tensor, and each process holds a share of its elements.
DeepSpeed keeps its true shape in `ds_shape` and `ds_numel` (0.19
`partition_parameters.Init._convert_to_deepspeed_param`). `is_partitioned` returns the right value
as soon as the run's training arguments exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled


def is_partitioned() -> bool:
    """Return whether models that are loaded from now on are partitioned (ZeRO-3)."""
    return bool(is_deepspeed_zero3_enabled())


def count_elements(parameter: torch.nn.Parameter) -> int:
    """Return the number of stored elements of the whole parameter, even if it is partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def find_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter, even if it is partitioned."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def count_local_bytes(parameter: torch.nn.Parameter) -> int:
    """Return the bytes of a parameter that this process holds between two steps.

    This is its share if the parameter is partitioned, else the whole parameter.
    """
    share = getattr(parameter, "ds_tensor", None)
    tensor = parameter if share is None or parameter.numel() else share
    return tensor.numel() * tensor.element_size()


@contextmanager
def partitioning_in(dtype: torch.dtype) -> Iterator[None]:
    """Make ZeRO-3 partition a model that is loaded inside this block in its own dtype.

    DeepSpeed makes every parameter float32 unless its section `bf16` is on
    (`zero.Init._set_dtype`). This would take twice the memory of a bfloat16 base. After loading,
    the section must be off again, because it would cast the adapter too.
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
