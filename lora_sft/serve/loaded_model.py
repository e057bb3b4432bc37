"""Load a run, an adapter or a model folder, and generate answers with it.

A conversation is rendered as in training. The exported chat template has the recipe's
`chat_template_kwargs` as its defaults. For an adapter whose template lacks them, they are set here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from lora_sft.data.templates.prompt_text import render_prompt
from lora_sft.data.templates.tokenizer import find_saved_stop_token_ids, load_saved_tokenizer
from lora_sft.errors import LoraSftError, ModelError
from lora_sft.evaluate.generation import AnswerStream, make_generation_config
from lora_sft.export.adapter_origin import AdapterOrigin, read_origin
from lora_sft.export.serving.serving_files import set_defaults_in_templates
from lora_sft.file_names import (
    ADAPTER_CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    MODEL_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
)
from lora_sft.model.base_model import (
    CausalModel,
    load_base_model,
    parse_dtype,
    read_stored_dtype,
)
from lora_sft.model_files.generation_settings import read_generation_settings
from lora_sft.model_files.json_files import REPLACE_IT
from lora_sft.model_files.remote_code import check_remote_code
from lora_sft.recipe import ModelSection
from lora_sft.run_directory import RunDirectory, is_run

# Tokens have 3 to 6 characters on average. Only a text of repeated characters has more.
MOST_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a full model, or with an adapter and the record of its base model.

    Attributes:
        name: The short name of the model, which clients use.
        path: The folder.
        origin: The record of the base model; None for a full model.
        trust_remote_code: Whether the model's Python files may run. The person who starts the
            command decides it; nothing in the folder does.
    """

    name: str
    path: Path
    origin: AdapterOrigin | None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Sampling:
    """The settings for an answer. Temperature 0 means greedy decoding."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to answer, and its tokenizer.

    Attributes:
        name: The short name of the model, which clients use.
        model: The full model, or base + adapter.
        tokenizer: The tokenizer, with the chat template.
        stop_token_ids: The tokens that end an answer.
        context_tokens: The longest sequence that the model's config allows; None if it sets no
            limit.
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
        """Return the answer to a conversation as a stream of text.

        Raises: ModelError if the conversation leaves no room for an answer.
        """
        prompt = self.make_prompt(messages, template_kwargs)
        room = self.count_free_tokens(len(prompt))
        config = make_generation_config(
            self.tokenizer,
            self.stop_token_ids,
            sampling.max_new_tokens if room is None else min(room, sampling.max_new_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        return AnswerStream(self.model, self.tokenizer, prompt, config)

    def count_free_tokens(self, prompt_tokens: int) -> int | None:
        """Return how many tokens of the context remain after a prompt; None without a limit.

        Raises: ModelError if no token remains.
        """
        if self.context_tokens is None:
            return None
        room = self.context_tokens - prompt_tokens
        if room < 1:
            raise self._make_length_error(f"{prompt_tokens:,} tokens")
        return room

    def _make_length_error(self, length: str) -> ModelError:
        return ModelError(
            f"the conversation has {length}, and the model's context is {self.context_tokens:,} "
            "tokens",
            self.name,
            "send a shorter conversation, or start a new one",
        )

    def make_prompt(
        self,
        messages: Sequence[dict[str, Any]],
        template_kwargs: Mapping[str, Any],
    ) -> list[int]:
        """Return the token ids of the prompt.

        Without a chat template, the prompt is the text of the last message.
        """
        if not self.tokenizer.chat_template:
            return self.tokenize(messages[-1]["content"])
        text = render_prompt(self.tokenizer, messages, template_kwargs)
        return self.tokenize(text, add_special_tokens=False)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        Raises: ModelError if the text is certainly longer than the context. A tokenizer needs much
            more memory than the text, so this is checked before.
        """
        if len(text) > MOST_CHARACTERS_PER_TOKEN * (self.context_tokens or len(text)):
            raise self._make_length_error(f"{len(text):,} characters")
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def find_model_folder(path: Path, *, trust_remote_code: bool = False) -> ModelFolder:
    """Return the model folder that a path means, without loading the model.

    Args:
        path: A run directory, an adapter folder or a model folder.
        trust_remote_code: Run the Python files of the model (of an adapter: of its base).

    Raises: ModelError if there is no model, or if the training of the run is not finished.
    """
    found = _find_folder(path)
    if trust_remote_code:
        origin = found.origin
        check_remote_code(
            origin.model_name_or_path if origin is not None else str(found.path),
            origin.revision if origin is not None else None,
        )
    return replace(found, trust_remote_code=trust_remote_code)


def _find_folder(path: Path) -> ModelFolder:
    if is_run(path):
        adapter = RunDirectory(path).adapter
        return ModelFolder(path.resolve().name, adapter, read_origin(adapter))
    folder = path.resolve()
    if (path / ADAPTER_CONFIG_FILE).exists():
        of_run = folder.name == "adapter" and RunDirectory(folder.parent).recipe.exists()
        return ModelFolder(folder.parent.name if of_run else folder.name, path, read_origin(path))
    if not (path / MODEL_CONFIG_FILE).exists():
        raise ModelError(
            "this is not a run directory, an adapter folder or a model folder",
            str(path),
            f"give a run directory, its adapter/ folder, or a folder with {MODEL_CONFIG_FILE}",
        )
    return ModelFolder(folder.name, path, None)


def load_model(folder: ModelFolder) -> LoadedModel:
    """Load a full model as it is stored, or an adapter and its base as they were in training."""
    model = (
        _load_full_model(folder)
        if folder.origin is None
        else _load_base_and_adapter(folder.path, folder.origin, folder.trust_remote_code)
    )
    model.eval()
    tokenizer = _load_tokenizer(folder)
    stops = find_saved_stop_token_ids(folder.path, tokenizer)
    if folder.origin is not None:
        stops |= frozenset(folder.origin.stop_token_ids)
    model.generation_config = _read_generation_config(folder.path, sorted(stops), tokenizer)
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    return LoadedModel(folder.name, model, tokenizer, sorted(stops), context)


def _load_full_model(folder: ModelFolder) -> CausalModel:
    where = str(folder.path)
    section = ModelSection(model_name_or_path=where, trust_remote_code=folder.trust_remote_code)
    dtype = read_stored_dtype(section, where) or "float32"
    return load_base_model(section, dtype=parse_dtype(dtype), where=where)


def _load_base_and_adapter(
    folder: Path, origin: AdapterOrigin, trust_remote_code: bool
) -> CausalModel:
    # This imports peft, which takes 4 CPU-seconds. A merged model does not need it.
    from lora_sft.model.adapter import load_adapter

    if not origin.model_name_or_path:
        raise ModelError(
            "the adapter does not record its base model",
            str(folder),
            f"merge it with its base first: lora-sft merge {folder} OUT --base PATH",
        )
    section = ModelSection(
        model_name_or_path=origin.model_name_or_path,
        revision=origin.revision,
        trust_remote_code=trust_remote_code,
    )
    dtype = origin.dtype or read_stored_dtype(section, str(folder)) or "float32"
    base = load_base_model(
        section,
        quantization=origin.quantization,
        dtype=parse_dtype(dtype),
        where=str(folder),
    )
    return load_adapter(base, folder)


def _load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the folder, or that of the base if the adapter folder has none.

    lora-sft saves a tokenizer with each adapter. Other programs may not.
    """
    origin = folder.origin
    if origin is None or (folder.path / TOKENIZER_CONFIG_FILE).exists():
        # Beside an adapter, code of a tokenizer would come from whoever made the adapter.
        own_code = folder.trust_remote_code and origin is None
        tokenizer = load_saved_tokenizer(folder.path, trust_remote_code=own_code)
    else:
        tokenizer = load_saved_tokenizer(
            origin.model_name_or_path, origin.revision, trust_remote_code=folder.trust_remote_code
        )
    if origin is not None:
        tokenizer.chat_template = set_defaults_in_templates(
            tokenizer.chat_template, origin.chat_template_kwargs, origin.template_date
        )
    return tokenizer


def _read_generation_config(
    folder: Path, stops: list[int], tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """Return the generation settings of the folder, with every stop token added.

    Raises: ModelError if the file is damaged.
    """
    path = folder / GENERATION_CONFIG_FILE
    try:
        config = GenerationConfig.from_dict(read_generation_settings(path))
    except LoraSftError:
        raise
    except Exception as error:  # transformers refuses a value with many classes
        raise ModelError(
            f"{path.name} holds a setting that transformers refuses: {error}", str(path), REPLACE_IT
        ) from error
    config.eos_token_id = stops or None
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return config
