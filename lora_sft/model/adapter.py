"""The LoRA adapter on the base model, through PEFT (Hu et al. 2021, arXiv 2106.09685).

Every target must match a module. If only one of `["q_proj", "v_porj"]` matches, PEFT accepts the
list silently and trains less than the recipe asks for. So this file checks each name and pattern
before PEFT changes the model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import PreTrainedModel

from lora_sft.errors import LoraSftError, ModelError, RecipeError
from lora_sft.file_names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lora_sft.model.model_kind import find_model_kind
from lora_sft.model.partitioning import find_shape
from lora_sft.model_files.adapter_config import check_adapter_files
from lora_sft.model_files.module_patterns import check_saved_patterns, find_pattern_fault
from lora_sft.recipe import Recipe

ALL_LINEAR = "all-linear"


def add_adapter(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Return the base model with the recipe's adapter: a new one, or the one in `init_from`.

    The adapter's weights are float32 even if the base has another dtype (PEFT's
    `autocast_adapter_dtype`). Updates of an adapter are too small for bfloat16.

    Raises:
        ModelError: If a target matches no module, or if the adapter in `init_from` does not fit.
        RecipeError: If a pattern of the recipe needs too much time.
    """
    if recipe.adapter.init_from is not None:
        return _continue_adapter(model, recipe)
    fields = dict(recipe.adapter.lora)
    fault = find_pattern_fault(fields, _list_names(model))
    if fault is not None:
        raise RecipeError(fault.what, recipe.where(f"adapter.{fault.field}"), fault.fix)
    for name in ("target_modules", "modules_to_save"):
        check_targets(model, fields.get(name), recipe, f"adapter.{name}")
    _sort_targets(fields)
    try:
        return get_peft_model(
            model, LoraConfig(task_type=find_model_kind().peft_task_type, **fields)
        )
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"PEFT refuses this adapter: {' '.join(str(error).split())[:300]}",
            recipe.where("adapter"),
            "write adapter.target_modules: all-linear, or name only linear, embedding or "
            "convolution layers",
        ) from error


def check_targets(
    model: torch.nn.Module, targets: Any, recipe: Recipe, field: str = "adapter.target_modules"
) -> None:
    """Check that each target name matches a module of the model.

    This uses PEFT's matching rule (peft 0.21 `check_target_module_exists`). A name in a list
    matches a module of this name, or one whose name ends in `.name`. A string is a regular
    expression for the whole name.

    Raises: ModelError at `field.i` if target i matches no module. Its fix names the most similar
    module.
    """
    if targets is None or targets == ALL_LINEAR:
        return
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, str):
        if not any(re.fullmatch(targets, name) for name in names):
            _refuse_target(targets, field, names, "", model, recipe)
        return
    matched = [_count_matches(target, names) for target in targets]
    for index, (target, count) in enumerate(zip(targets, matched, strict=True)):
        if count == 0:
            share = f" ({sum(n > 0 for n in matched)} of {len(targets)} targets matched)"
            _refuse_target(target, f"{field}.{index}", names, share, model, recipe)


def _list_names(model: torch.nn.Module) -> list[str]:
    """Return the names that PEFT matches with patterns: of the modules and of the parameters."""
    modules = [name for name, _ in model.named_modules() if name]
    return [*modules, *(name for name, _ in model.named_parameters())]


def _check_saved_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Check the files of a saved adapter, and its patterns, before PEFT reads them.

    Raises: ModelError if a file is damaged, or if a pattern needs too much time.
    """
    check_saved_patterns(folder, check_adapter_files(folder), _list_names(model))


def _count_matches(target: str, names: Sequence[str]) -> int:
    return sum(name == target or name.endswith(f".{target}") for name in names)


def _refuse_target(
    target: str, field: str, names: Sequence[str], share: str, model: Any, recipe: Recipe
) -> None:
    last_parts = sorted({name.rsplit(".", 1)[-1] for name in names} - {""})
    near = difflib.get_close_matches(target, last_parts, n=1)
    linear = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
    raise ModelError(
        f'"{target}" matches no module of {recipe.model.model_name_or_path}{share}',
        recipe.where(field),
        f'did you mean "{near[0]}"?'
        if near
        else f"write linear layers of this model: {', '.join(linear)}",
    )


def _sort_targets(fields: dict[str, Any]) -> None:
    """Sort the target names. PEFT keeps them as a set, whose order differs between equal runs."""
    if isinstance(fields.get("target_modules"), list):
        fields["target_modules"] = sorted(fields["target_modules"])


def _continue_adapter(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    return load_adapter(
        model,
        recipe.adapter.init_from_location,
        is_trainable=True,
        where=recipe.where("adapter.init_from"),
    )


def load_adapter(
    model: PreTrainedModel, folder: str | Path, *, is_trainable: bool = False, where: str = ""
) -> PeftModel:
    """Attach a saved adapter, and check that the model uses every saved tensor.

    PEFT only warns or reports nothing: it loads an adapter of a two-layer model on a three-layer
    one.

    Raises: ModelError if the folder has no safetensors adapter, if a pattern of its config needs
    too much time, if a tensor has a wrong shape, or if a saved tensor is missing or unknown.
    """
    where = where or str(folder)
    path = Path(folder) / ADAPTER_WEIGHTS_FILE
    if not (path.exists() and path.with_name(ADAPTER_CONFIG_FILE).exists()):
        raise ModelError(
            f"this folder has no adapter ({ADAPTER_CONFIG_FILE} and {ADAPTER_WEIGHTS_FILE})",
            where,
            "name the folder of a PEFT adapter; adapter_model.bin is a pickle and is not loaded",
        )
    _check_saved_adapter(model, path.parent)
    with _attaching_errors(where):
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    _check_all_tensors_used(adapted, path, where)
    return adapted


@contextmanager
def _attaching_errors(where: str) -> Iterator[None]:
    """Turn the errors with which PEFT refuses an adapter into a ModelError."""
    try:
        yield
    except (LoraSftError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # PEFT, safetensors and torch raise many classes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"the adapter does not fit the base: {reason}",
            where,
            f"use the base that the adapter was trained on ({ADAPTER_CONFIG_FILE} names it)",
        ) from error


def attach_adapters(model: PreTrainedModel, folders: Sequence[str | Path]) -> PeftModel:
    """Attach several saved adapters, all active at once.

    The verification of a merge compares the merged model with this one. Each adapter has its own
    scale. If an adapter has a resized embedding, the base is resized first, because PEFT needs
    this.
    """
    for folder in folders:
        check_adapter_files(Path(folder))
        _resize_for(model, Path(folder))
    _check_saved_adapter(model, Path(folders[0]))
    names = [f"adapter_{index}" for index in range(len(folders))]
    with _attaching_errors(str(folders[0])):
        adapted = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        _check_saved_adapter(adapted, Path(folder))
        with _attaching_errors(str(folder)):
            adapted.load_adapter(str(folder), adapter_name=name)
    tuner: Any = adapted.base_model
    tuner.set_adapter(names)
    return adapted.eval()


def attach_adapters_to_layers(model: PreTrainedModel, folders: Sequence[str | Path]) -> PeftModel:
    """Attach several saved adapters, all active at once, to a model whose weights stay on disk.

    This works for LoRA on linear layers and embeddings: their A and B run beside a layer and never
    read its weight. `PeftModel.from_pretrained` would load the base into memory.
    """
    adapted: Any = None
    names = [f"adapter_{index}" for index in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        _check_saved_adapter(model if adapted is None else adapted, Path(folder))
        with _attaching_errors(str(folder)):
            config = LoraConfig.from_pretrained(str(folder))
            if adapted is None:
                adapted = get_peft_model(model, config, name, low_cpu_mem_usage=True)
            else:
                adapted.add_adapter(name, config, low_cpu_mem_usage=True)
        state = _read_layer_state(Path(folder), name)
        unexpected = adapted.load_state_dict(state, strict=False, assign=True).unexpected_keys
        assert not unexpected, unexpected
    adapted.base_model.set_adapter(names)
    return adapted.eval()


def _read_layer_state(folder: Path, adapter_name: str) -> dict[str, torch.Tensor]:
    """Return the A and B matrices under their names in the model.

    Copies of base weights in the file are left out.
    """
    state = {}
    with safe_open(str(folder / ADAPTER_WEIGHTS_FILE), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            found = re.search(r"\.lora_(embedding_)?[AB](?=\.|$)", key)
            if found:
                name = f"{key[: found.end()]}.{adapter_name}{key[found.end() :]}"
                state[name] = file.get_tensor(key).float()
    return state


def _resize_for(model: PreTrainedModel, folder: Path) -> None:
    embedding: Any = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    with safe_open(str(folder / ADAPTER_WEIGHTS_FILE), framework="pt") as file:
        rows = {
            file.get_slice(key).get_shape()[0]
            for key in file.keys()  # noqa: SIM118 (no mapping)
            if f".{name}." in key and key.endswith(".weight")
        }
    if rows and max(rows) != embedding.weight.shape[0]:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def read_adapter_tensor_names(path: Path) -> set[str]:
    """Return the tensor names of an adapter file. Only its header is read."""
    with safe_open(str(path), framework="pt") as file:
        return set(file.keys())


def _check_all_tensors_used(adapted: PeftModel, path: Path, where: str) -> None:
    saved = read_adapter_tensor_names(path)
    expected = set(get_peft_model_state_dict(adapted))
    if saved == expected:
        return
    unused, missing = sorted(saved - expected), sorted(expected - saved)
    detail = [f"{len(unused)} saved tensors match no module (first: {unused[0]})"] if unused else []
    detail += [f"{len(missing)} tensors are missing (first: {missing[0]})"] if missing else []
    raise ModelError(
        "the adapter does not fit the base: " + "; ".join(detail),
        where,
        f"use the base that the adapter was trained on ({ADAPTER_CONFIG_FILE} names it)",
    )


def count_adapted_modules(model: torch.nn.Module) -> Mapping[str, int]:
    """Return the number of modules that have an adapter, by the last part of their name."""
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and getattr(module, "lora_A", None):
            last = name.rsplit(".", 1)[-1]
            counts[last] = counts.get(last, 0) + 1
    return dict(sorted(counts.items()))


def restore_adapter_dtype(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Cast the trainable weights back to float32 before the optimizer uses them.

    On every quantised base, TRL casts them to bfloat16 (trl 1.16 `SFTTrainer.__init__`). At the
    usual learning rates of LoRA, most updates of AdamW would then round to nothing.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def list_adapter_shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """Return the name and the whole shape of every tensor that a saved adapter must contain."""
    tensors = get_peft_model_state_dict(model)
    return {name: find_shape(tensor) for name, tensor in tensors.items()}
