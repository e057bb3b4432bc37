"""Load the base model that an adapter is trained on, merged onto or compared with.

Safetensors only, and code from a model repository only where the recipe says so: both are
passed on every load, because transformers asks at the terminal when they are left open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoConfig, PreTrainedModel

from lora_sft.errors import CapabilityError, ModelError
from lora_sft.file_names import MODEL_CONFIG_FILE
from lora_sft.model.model_kind import find_model_kind
from lora_sft.model.partitioning import find_shape, is_partitioned, partitioned_in
from lora_sft.model.quantization import (
    is_quantized,
    keep_codes_unpacked,
    make_quantization_config,
)
from lora_sft.recipe import ModelSection

# A transformers model, or PEFT's wrapper around one, which forwards what it does not know itself.
CausalModel: TypeAlias = Any


def parse_dtype(name: str) -> torch.dtype:
    """`bfloat16` -> torch.bfloat16. The recipe's schema has the names that are allowed."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def find_device() -> torch.device:
    """This process's device: its own GPU (LOCAL_RANK), or the CPU.

    A process that sees one GPU has that, whatever its rank: some launchers show each its own. So
    does accelerate (1.15 `PartialState.set_device`), which places what is trained.
    """
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def load_base_model(
    section: ModelSection,
    *,
    quantization: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    where: str = "model.model_name_or_path",
) -> PreTrainedModel:
    """Load the recipe's base on `device` (this process's own unless given).

    `dtype` overrides the recipe's (the merge computes in float32); a quantised base is placed
    while it loads, since its codes cannot be moved cheaply afterwards. Under ZeRO-3 DeepSpeed
    places what it spreads, and 4-bit codes are stored in the base's dtype.

    Raises: ModelError where nothing loadable is at the recipe's location; CapabilityError where
    the machine cannot run the quantisation.
    """
    dtype = dtype or parse_dtype(section.dtype)
    device = device or find_device()
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": section.attn_implementation,
    }
    if not is_partitioned():
        arguments["device_map"] = {"": device}
    if quantization is not None:
        arguments["quantization_config"] = make_quantization_config(
            quantization, dtype, "quantization", stored_alike=is_partitioned()
        )
    with partitioned_in(dtype):
        model = _load(section, arguments, where)
    if is_quantized(model):
        keep_codes_unpacked(model)
    return model


def load_in_float32(
    location: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offload_folder: Path | None = None,
) -> PreTrainedModel:
    """Load a model folder or hub id as anybody would, computing in float32.

    Args:
        location: A folder, or a hub id.
        revision: Of the hub id.
        trust_remote_code: Run the model's own Python files.
        offload_folder: Keep the weights on disk, there, and load a layer when it is computed.
    """
    placement: dict[str, Any] = {}
    if offload_folder is not None:
        placement = {"device_map": {"": "disk"}, "offload_folder": str(offload_folder)}
    model: PreTrainedModel = find_model_kind().auto_class.from_pretrained(
        location,
        revision=revision,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        **placement,
    )
    return model.eval()


def build_without_weights(
    location: str,
    revision: str | None,
    *,
    trust_remote_code: bool = False,
    num_tokens: int | None = None,
) -> PreTrainedModel:
    """The model of a config on torch's meta device: all names, types and shapes, and no memory.

    A stored quantisation is left out, so that linear layers are linear layers; `num_tokens`
    replaces the vocabulary's size.

    Raises: ModelError where transformers cannot build it.
    """
    section = ModelSection(
        model_name_or_path=location, revision=revision, trust_remote_code=trust_remote_code
    )
    loaded = _load_config(section, "base")
    with _as_model_error(section, "base"):
        if hasattr(loaded, "quantization_config"):
            del loaded.quantization_config
        if num_tokens is not None:
            loaded.get_text_config().vocab_size = num_tokens
        with torch.device("meta"):
            return find_model_kind().auto_class.from_config(
                loaded, trust_remote_code=trust_remote_code
            )


def map_checkpoint_names(
    model: PreTrainedModel, names: Sequence[str]
) -> dict[str, list[list[str]] | str]:
    """Parameter -> the tensors on disk that transformers makes it from.

    Groups are joined along the rows, one after another; the items of a group are stacked (experts).
    A parameter that is made in another way has the name of the operation instead.

    Source: transformers 5.23 `convert_and_load_state_dict_in_model`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {name: each for each in converters for name in each.source_patterns}
    parameters = model.state_dict()
    collected: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(names, key=dot_natural_key):
        found, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, parameters
        )
        collected.setdefault(found, {}).setdefault(pattern, []).append(name)
    made: dict[str, list[list[str]] | str] = {}
    for parameter, groups in collected.items():
        pattern = next(iter(groups))
        converter = by_pattern[pattern] if pattern is not None else None
        made[parameter] = _follow_converter(converter, groups)
    return made


def _follow_converter(converter: Any, groups: Mapping[Any, list[str]]) -> list[list[str]] | str:
    """The groups in the order in which the converter joins them, or what cannot be followed."""
    if converter is None:
        return [groups[None]]
    operations = [
        (type(each).__name__, getattr(each, "dim", None)) for each in converter.operations
    ]
    if operations not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        return " + ".join(name for name, _ in operations)
    return [groups[pattern] for pattern in converter.source_patterns if pattern in groups]


def count_embedding_rows(model: CausalModel) -> int:
    """How many token ids the model knows."""
    return int(find_shape(model.get_input_embeddings().weight)[0])


def read_stored_dtype(section: ModelSection, where: str) -> str | None:
    """The dtype that a base's own config names, or None where it names none.

    Raises: ModelError where there is no config to read.
    """
    dtype = _load_config(section, where).dtype
    return str(dtype).removeprefix("torch.") if dtype is not None else None


def _load(section: ModelSection, arguments: dict[str, Any], where: str) -> PreTrainedModel:
    stored = getattr(_load_config(section, where), "quantization_config", None)
    if stored is not None and "quantization_config" in arguments:
        raise ModelError(  # transformers would only warn, and keep the stored form
            "the base is stored quantised already",
            f"{where} ({section.model_name_or_path})",
            "write quantization: null to train on it as stored",
        )
    with _as_model_error(section, where):
        loaded: Any = find_model_kind().auto_class.from_pretrained(
            section.location,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    model, loading = loaded
    lost = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if lost:
        raise ModelError(  # transformers fills them with random numbers and goes on
            f"{len(lost)} tensors of the model are not in its files (first: {lost[0]})",
            f"{where} ({section.model_name_or_path})",
            f"download the model again, or name the model that {MODEL_CONFIG_FILE} describes",
        )
    return model


def _load_config(section: ModelSection, where: str) -> Any:
    with _as_model_error(section, where):
        return AutoConfig.from_pretrained(
            section.location,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )


@contextmanager
def _as_model_error(section: ModelSection, where: str) -> Iterator[None]:
    """What transformers raises where a folder or hub id cannot be loaded, as a ModelError."""
    try:
        yield
    except ImportError as error:
        raise CapabilityError(
            f"the model asks for a library that is missing: {' '.join(str(error).split())[:300]}",
            f"{where} ({section.model_name_or_path})",
            "install it, or set model.attn_implementation: null",
        ) from error
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        folder = Path(section.location).is_dir()
        raise ModelError(
            f"cannot load a {find_model_kind().name}: {lines[0]}",
            f"{where} ({section.model_name_or_path})",
            f"the folder needs {MODEL_CONFIG_FILE} and *.safetensors of a {find_model_kind().name}"
            if folder
            else "give an existing folder, or a hub id that this machine can reach "
            "(HF_TOKEN if gated)",
        ) from error
