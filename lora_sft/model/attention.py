"""Let the recipe decide the attention, whatever the config of a base model asks for.

A `config.json` may name an attention, or a kernel of the hub, whose code would be fetched and run.
transformers 5.23 prefers that name to the caller's (`PreTrainedConfig.__init__` sets the fields of
the file last).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from lora_sft.errors import ModelError
from lora_sft.log import say

ATTENTION, EXPERTS = "_attn_implementation", "_experts_implementation"
CONFIG_FIELDS = (ATTENTION, EXPERTS)
LAYER_FIELDS = (ATTENTION, EXPERTS, "attn_implementation", "experts_implementation")


def set_attention(config: Any, attention: str | None, location: str) -> None:
    """Set the attention of a loaded config, of the configs inside it, and of each layer.

    What the config asked for is shown, if it is something else.

    Args:
        config: The config of a base model, as `AutoConfig` loaded it.
        attention: The recipe's `attn_implementation`; None: the library chooses.
        location: The base model's folder or hub id, for the message.
    """
    asked = _take_from_layers(config)
    asked += [getattr(part, name, None) for part in _list_parts(config) for name in CONFIG_FIELDS]
    setattr(config, ATTENTION, attention)  # this sets the configs inside it too
    setattr(config, EXPERTS, None)
    for name in asked:
        if name not in (None, attention):
            _say_ignored(str(name), location)


def check_attention(model: Any, attention: str | None, where: str) -> None:
    """Check that every part of a loaded model has the attention of the recipe.

    The code of a model may choose another one, if it does not support the recipe's.

    Raises: ModelError if a part has another attention.
    """
    found = {getattr(part, ATTENTION, None) for part in _list_parts(model.config)}
    others = sorted(map(str, found - {attention, None}))
    if attention is not None and others:
        raise ModelError(
            f"the model computes attention with {others[0]}, but the recipe says {attention}",
            where,
            "write model.attn_implementation: null to let the model choose",
        )


def _list_parts(config: Any) -> Iterator[Any]:
    """Yield a config and the configs inside it, such as that of the text model."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield from _list_parts(part)


def _take_from_layers(config: Any) -> list[Any]:
    """Remove what a config asks for single layers (`per_layer_config`), and return it."""
    if not getattr(config, "is_heterogeneous", False):
        return []
    layers = config.to_dict()["per_layer_config"]
    asked = [
        values.pop(name) for values in layers.values() for name in LAYER_FIELDS if name in values
    ]
    config.per_layer_config = layers
    return asked


@cache
def _say_ignored(name: str, location: str) -> None:
    say(
        f"{location}: config.json asks for {name!r}, which is not used; only the recipe's "
        "model.attn_implementation chooses the attention"
    )
