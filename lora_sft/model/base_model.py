"""Load the base model to train it with an adapter, to merge, or to compare.

Only safetensors files are loaded. Python code from a model repository runs only if the recipe
allows it. Every load passes both settings, because transformers asks a question at the terminal if
they are missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoConfig, PreTrainedModel

from lora_sft.errors import CapabilityError, LoraSftError, ModelError
from lora_sft.file_names import GENERATION_CONFIG_FILE, MODEL_CONFIG_FILE
from lora_sft.model.attention import check_attention, set_attention
from lora_sft.model.described_size import check_described_layers, check_described_parameters
from lora_sft.model.model_kind import find_model_kind
from lora_sft.model.partitioning import find_shape, is_partitioned, partitioning_in
from lora_sft.model.quantization import (
    is_quantized,
    keep_codes_unpacked,
    make_quantization_config,
)
from lora_sft.model_files import remote_code
from lora_sft.model_files.base_checkpoint import (
    NAMED_WEIGHTS,
    check_indexes,
    find_damage,
    read_base_checkpoint,
)
from lora_sft.model_files.generation_settings import read_generation_settings
from lora_sft.recipe import ModelSection

# A transformers model, or PEFT's wrapper around it, which has the model's attributes too.
CausalModel: TypeAlias = Any


def parse_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name such as `bfloat16`. The schema lists the allowed names."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def find_device() -> torch.device:
    """Return the device of this process: its own GPU (by LOCAL_RANK), or the CPU.

    Some launchers show each process only its own GPU. Then the process uses this GPU, whatever its
    rank is. accelerate, which places the trained model, does the same (1.15
    `PartialState.set_device`).
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
    """Load the base model of the recipe.

    A quantised base is placed on its device during loading, because moving its codes later is slow.
    With ZeRO-3, DeepSpeed places the weights, and 4-bit codes are stored in the base's dtype.

    Args:
        section: The recipe's section `model`.
        quantization: Settings of BitsAndBytesConfig, or None.
        dtype: Replaces the recipe's dtype. A merge computes in float32.
        device: The device; None: the device of this process.
        where: The place for error messages.

    Raises:
        ModelError: If the recipe's location has no model that can be loaded.
        CapabilityError: If this machine cannot do the quantisation.
    """
    dtype = dtype or parse_dtype(section.dtype)
    device = device or find_device()
    arguments: dict[str, Any] = {"dtype": dtype}
    if not is_partitioned():
        arguments["device_map"] = {"": device}
    if quantization is not None:
        arguments["quantization_config"] = make_quantization_config(
            quantization, dtype, "quantization", store_in_dtype=is_partitioned()
        )
    _check_described_size(section, where)
    with partitioning_in(dtype):
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
    """Load a model in float32, as a user of transformers would.

    Args:
        location: A folder, or a hub id.
        revision: The revision, if the location is a hub id.
        trust_remote_code: Run the Python files of the model's repository.
        offload_folder: If given, keep the weights on disk in this folder, and load each layer when
            it is computed.

    Raises: ModelError if the model cannot be loaded.
    """
    placement: dict[str, Any] = {}
    if offload_folder is not None:
        placement = {"device_map": {"": "disk"}, "offload_folder": str(offload_folder)}
    section = ModelSection(
        model_name_or_path=str(location), revision=revision, trust_remote_code=trust_remote_code
    )
    config = _load_config(section, "model")
    check_indexes(str(location), revision, getattr(config, NAMED_WEIGHTS, None))
    with _loading_errors(section, "model"):
        model: PreTrainedModel = find_model_kind().auto_class.from_pretrained(
            location,
            config=config,
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
    """Return the model of a config on torch's meta device.

    It has all names, dtypes and shapes, and needs no memory. A stored quantisation is ignored, so
    that all linear layers are plain linear layers.

    Args:
        location: A folder, or a hub id.
        revision: The revision, if the location is a hub id.
        trust_remote_code: Run the Python files of the model's repository.
        num_tokens: Replaces the size of the vocabulary.

    Raises: ModelError if transformers cannot build the model.
    """
    section = ModelSection(
        model_name_or_path=location, revision=revision, trust_remote_code=trust_remote_code
    )
    _check_described_size(section, "base")
    return _build_without_weights(section, "base", num_tokens)


def _build_without_weights(
    section: ModelSection, where: str, num_tokens: int | None = None
) -> PreTrainedModel:
    loaded = _load_config(section, where)
    with _loading_errors(section, where):
        if hasattr(loaded, "quantization_config"):
            del loaded.quantization_config
        if num_tokens is not None:
            loaded.get_text_config().vocab_size = num_tokens
        with torch.device("meta"):
            return find_model_kind().auto_class.from_config(
                loaded, trust_remote_code=section.trust_remote_code
            )


def _check_described_size(section: ModelSection, where: str) -> None:
    """Check that the config of a local model describes a model of about the size of its files.

    Raises: ModelError if a file is damaged, or if the model is much larger.
    """
    folder = Path(section.location)
    if not (folder / MODEL_CONFIG_FILE).exists():
        return  # the load refuses this folder, or finds a hub id
    config = _load_config(section, where)
    read_generation_settings(folder / GENERATION_CONFIG_FILE)
    stored = read_base_checkpoint(section.location)
    check_described_layers(config, stored)
    if not is_partitioned():  # ZeRO-3 would partition this model too
        check_described_parameters(lambda: _build_without_weights(section, where), stored)


def map_checkpoint_names(
    model: PreTrainedModel, names: Sequence[str]
) -> dict[str, list[list[str]] | str]:
    """Return the tensors on disk from which transformers makes each parameter of the model.

    A value is a list of groups. The tensors in a group are stacked (experts), and the groups are
    joined along the rows. If a parameter is made in another way, the value is the name of this
    operation.

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
    """Return the groups in the order in which the converter joins them.

    For any other converter, return the names of its operations.
    """
    if converter is None:
        return [groups[None]]
    operations = [
        (type(each).__name__, getattr(each, "dim", None)) for each in converter.operations
    ]
    if operations not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        return " + ".join(name for name, _ in operations)
    return [groups[pattern] for pattern in converter.source_patterns if pattern in groups]


def count_embedding_rows(model: CausalModel) -> int:
    """Return the number of token ids that the model's embedding has."""
    return int(find_shape(model.get_input_embeddings().weight)[0])


def read_stored_dtype(section: ModelSection, where: str) -> str | None:
    """Return the dtype in the base's own config, or None if the config has none.

    Raises: ModelError if the config cannot be read, or names no dtype of torch.
    """
    dtype = _load_config(section, where).dtype
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ModelError(
            f"{MODEL_CONFIG_FILE}: torch has no dtype {name}",
            f"{where} ({section.model_name_or_path})",
            "write a dtype such as bfloat16, or download the model again",
        )
    return name


def _load(section: ModelSection, arguments: dict[str, Any], where: str) -> PreTrainedModel:
    config = _load_config(section, where)
    stored = getattr(config, "quantization_config", None)
    if stored is not None and "quantization_config" in arguments:
        raise ModelError(  # transformers would only warn and use the stored quantisation
            "the recipe sets a quantization, but the base is already stored quantised",
            f"{where} ({section.model_name_or_path})",
            "write quantization: null to use the stored quantisation",
        )
    check_indexes(section.location, section.revision, getattr(config, NAMED_WEIGHTS, None))
    with _loading_errors(section, where):
        loaded: Any = find_model_kind().auto_class.from_pretrained(
            section.location,
            config=config,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    model, loading = loaded
    check_attention(model, section.attn_implementation, f"{where} ({section.model_name_or_path})")
    lost = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if lost:
        raise ModelError(  # transformers would fill them with random numbers
            f"{len(lost)} tensors of the model are not in its files (first: {lost[0]})",
            f"{where} ({section.model_name_or_path})",
            f"download the model again, or name the model that {MODEL_CONFIG_FILE} describes",
        )
    return model


def _load_config(section: ModelSection, where: str) -> Any:
    if section.trust_remote_code:
        remote_code.check_remote_code(section.location, section.revision)
    with _loading_errors(section, where):
        config = AutoConfig.from_pretrained(
            section.location,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )
        set_attention(config, section.attn_implementation, section.location)
    return config


@contextmanager
def _loading_errors(section: ModelSection, where: str) -> Iterator[None]:
    """Turn the errors with which the libraries refuse a folder or hub id into our errors.

    If a file of the model is damaged, the error names this file.
    """
    try:
        yield
    except LoraSftError:
        raise
    except ImportError as error:
        raise CapabilityError(
            f"the model needs a library that is missing: {' '.join(str(error).split())[:300]}",
            f"{where} ({section.model_name_or_path})",
            "install this library, or write model.attn_implementation: null",
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CapabilityError(
            "the model does not fit into the memory",
            f"{where} ({section.model_name_or_path})",
            "use a smaller model, write quantization: nf4, or use a machine with more memory",
        ) from error
    except Exception as error:  # transformers, safetensors and torch raise many classes
        damage = find_damage(section.location)
        if damage is not None:
            raise damage from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"cannot load a {find_model_kind().name}: {lines[0]}",
            f"{where} ({section.model_name_or_path})",
            _find_fix(error, section),
        ) from error


def _find_fix(error: Exception, section: ModelSection) -> str:
    if remote_code.needs_trust(error):
        return remote_code.FIX
    if Path(section.location).is_dir():
        return (
            f"the folder must contain {MODEL_CONFIG_FILE} and the *.safetensors files of a "
            f"{find_model_kind().name}"
        )
    return (
        "name an existing folder, or a hub id that this machine can reach "
        "(for a gated model, set HF_TOKEN)"
    )
