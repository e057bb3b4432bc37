"""Let the recipe decide the attention, whatever the config of a base model asks for.

A `config.json` may name an attention, or a kernel of the hub, whose code would be fetched and run.
transformers 5.23 prefers that name to the caller's (`PreTrainedConfig.__init__` sets the fields of
the file last).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from lora_sft.log import say

ATTENTION, EXPERTS = "_attn_implementation", "_experts_implementation"
LAYER_FIELDS = (ATTENTION, "attn_implementation", EXPERTS, "experts_implementation")


def set_attention(config: Any, attention: str | None, location: str) -> None:
    """Set the attention of a loaded config and of the configs inside it.

    Args:
        config: The config of a base model, as `AutoConfig` loaded it.
        attention: The recipe's `attn_implementation`; None: the library chooses.
        location: The base model's folder or hub id, for the message.
    """
    asked = _take_from_layers(config)
    for part in _list_parts(config):
        asked += [getattr(part, ATTENTION, None), getattr(part, EXPERTS, None)]
    for name in asked:
        if name not in (None, attention):
            _say_ignored(str(name), location)
    setattr(config, ATTENTION, attention)  # this sets the configs inside it too
    setattr(config, EXPERTS, None)


def _list_parts(config: Any) -> Iterator[Any]:
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
    config.per_layer_config = None
    config.per_layer_config = layers
    return asked


@cache
def _say_ignored(name: str, location: str) -> None:
    say(f"{location}: its config asks for {name!r}, which is ignored: the recipe decides")
