"""A run, an adapter or a model folder, loaded and ready to answer.

The prompt is the one that training rendered: the exported template has the recipe's arguments as
its defaults, and for an adapter saved without them they are set here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from lora_sft.data.templates.tokenizer import find_saved_stop_token_ids, load_saved_tokenizer
from lora_sft.errors import ModelError
from lora_sft.evaluate.generation import AnswerStream, make_generation_config
from lora_sft.export.adapter_origin import AdapterOrigin, read_origin
from lora_sft.export.serving.serving_files import set_defaults_in_templates
from lora_sft.file_names import ADAPTER_CONFIG_FILE, MODEL_CONFIG_FILE, TOKENIZER_CONFIG_FILE
from lora_sft.model.base_model import (
    CausalModel,
    load_base_model,
    parse_dtype,
    read_stored_dtype,
)
from lora_sft.recipe import ModelSection
from lora_sft.run_directory import RunDirectory, is_run


@dataclass(frozen=True)
class Target:
    """What a path names: a model folder, or an adapter with the record of its base."""

    name: str
    folder: Path
    origin: AdapterOrigin | None  # of an adapter


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Speaker:
    """A model ready to answer, with the tokens that end an answer.

    `context_tokens` is the longest sequence that the model's config allows, None where it names
    none.
    """

    name: str
    model: CausalModel
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int]
    context_tokens: int | None

    def answer(
        self,
        messages: Sequence[dict[str, str]],
        sampling: Sampling,
        template_kwargs: Mapping[str, Any],
    ) -> AnswerStream:
        """The answer to a conversation, piece by piece.

        Raises: ModelError where the conversation leaves no room for an answer.
        """
        prompt = self.make_prompt(messages, template_kwargs)
        room = self.count_room(len(prompt))
        config = make_generation_config(
            self.tokenizer,
            self.stop_token_ids,
            sampling.max_new_tokens if room is None else min(room, sampling.max_new_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        return AnswerStream(self.model, self.tokenizer, prompt, config)

    def count_room(self, prompt_tokens: int) -> int | None:
        """Tokens that an answer may have after a prompt; None where nothing limits it.

        Raises: ModelError where there is none left.
        """
        if self.context_tokens is None:
            return None
        room = self.context_tokens - prompt_tokens
        if room < 1:
            raise ModelError(
                f"the conversation has {prompt_tokens:,} tokens, and the model's context is "
                f"{self.context_tokens:,}",
                self.name,
                "make it shorter, or begin anew",
            )
        return room

    def make_prompt(
        self, messages: Sequence[dict[str, str]], template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        """Token ids before the answer; a model without a template completes the last text."""
        if not self.tokenizer.chat_template:
            return list(self.tokenizer(messages[-1]["content"])["input_ids"])
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False, **template_kwargs
        )
        return list(ids)


def find_target(path: Path) -> Target:
    """What `path` names, without loading it.

    Raises: ModelError for no folder, one that is no model, and a run not trained to its end.
    """
    if is_run(path):
        adapter = RunDirectory(path).adapter
        return Target(path.resolve().name, adapter, read_origin(adapter))
    folder = path.resolve()
    if (path / ADAPTER_CONFIG_FILE).exists():
        of_run = folder.name == "adapter" and RunDirectory(folder.parent).recipe.exists()
        return Target(folder.parent.name if of_run else folder.name, path, read_origin(path))
    if not (path / MODEL_CONFIG_FILE).exists():
        raise ModelError(
            "neither a run, an adapter nor a model is here",
            str(path),
            f"give a run directory, its adapter/ folder, or a folder with {MODEL_CONFIG_FILE}",
        )
    return Target(folder.name, path, None)


def load_speaker(target: Target) -> Speaker:
    """Load what a path names: base + adapter as it was trained, or a model as it is stored."""
    model = (
        _load_model(target.folder)
        if target.origin is None
        else _load_adapted(target, target.origin)
    )
    model.eval()
    tokenizer = _load_tokenizer(target)
    stops = find_saved_stop_token_ids(target.folder, tokenizer)
    if target.origin is not None:
        stops |= frozenset(target.origin.stop_token_ids)
    model.generation_config = _read_generation_config(target.folder, sorted(stops), tokenizer)
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    return Speaker(target.name, model, tokenizer, sorted(stops), context)


def _load_model(folder: Path) -> CausalModel:
    section = ModelSection(model_name_or_path=str(folder))
    dtype = read_stored_dtype(section, str(folder)) or "float32"
    return load_base_model(section, dtype=parse_dtype(dtype), where=str(folder))


def _load_adapted(target: Target, origin: AdapterOrigin) -> CausalModel:
    # Imported here: peft takes 4 CPU-seconds, and a merged model needs none of it.
    from lora_sft.model.adapter import load_adapter

    if not origin.model_name_or_path:
        raise ModelError(
            "the adapter does not say which base it belongs to",
            str(target.folder),
            f"merge it first: lora-sft merge {target.folder} OUT --base PATH",
        )
    section = ModelSection(
        model_name_or_path=origin.model_name_or_path,
        revision=origin.revision,
        trust_remote_code=origin.trust_remote_code,
    )
    dtype = origin.dtype or read_stored_dtype(section, str(target.folder)) or "float32"
    base = load_base_model(
        section,
        quantization=origin.quantization,
        dtype=parse_dtype(dtype),
        where=str(target.folder),
    )
    return load_adapter(base, target.folder)


def _load_tokenizer(target: Target) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, else (an adapter trained elsewhere) the base's."""
    origin = target.origin
    if origin is None or (target.folder / TOKENIZER_CONFIG_FILE).exists():
        tokenizer = load_saved_tokenizer(target.folder)
    else:
        tokenizer = load_saved_tokenizer(
            origin.model_name_or_path, origin.revision, trust_remote_code=origin.trust_remote_code
        )
    if origin is not None:
        tokenizer.chat_template = set_defaults_in_templates(
            tokenizer.chat_template, origin.chat_template_kwargs, origin.template_date
        )
    return tokenizer


def _read_generation_config(
    folder: Path, stops: list[int], tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """The sampling that the folder asks for, with every stop token."""
    try:
        config = GenerationConfig.from_pretrained(folder)
    except OSError:
        config = GenerationConfig()
    config.eos_token_id = stops or None
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return config
