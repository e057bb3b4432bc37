"""Write the tokenizer and the configs so that every server reads the same model.

transformers 5 saves a model for transformers 5. Many servers and converters are other or older
programs. If they do not know a field, they silently use their own default, such as another RoPE
base or no stop token, and the answers are wrong.

Each function here changes one file so that older programs get the same model (transformers 4.x, on
which vLLM, SGLang and llama.cpp build). Nothing that transformers 5 needs is removed. Finally the
tokenizer is loaded again, and its prompts are compared with those of training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from lora_sft.data.templates.prompt_text import tokenize_prompt
from lora_sft.data.templates.rendering import TemplateRefusal, depends_on_date
from lora_sft.data.templates.tokenizer import load_saved_tokenizer
from lora_sft.errors import ExportError
from lora_sft.export.serving.model_card import make_adapter_card, make_merged_card
from lora_sft.export.serving.ollama import make_modelfile
from lora_sft.export.serving.template_defaults import set_template_defaults
from lora_sft.file_names import (
    CARD_FILE,
    GENERATION_CONFIG_FILE,
    MODEL_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
)
from lora_sft.log import say
from lora_sft.model_files.base_files import BaseFiles, read_json
from lora_sft.run_directory import write_json

if TYPE_CHECKING:
    from lora_sft.export.adapter_origin import AdapterOrigin

MODELFILE = "Modelfile"
# A base model's wish for an attention or a kernel. The program that loads the export decides it.
ATTENTION_KEYS = (
    *("_attn_implementation", "attn_implementation"),
    *("_experts_implementation", "experts_implementation"),
)
# Loading and training leave these fields. They are wrong or have no meaning in an export. The value
# of `use_cache` then comes from the base model's own config.
STALE_CONFIG_KEYS = ("quantization_config", "_name_or_path", "use_cache", *ATTENTION_KEYS)
# Never copied from the base model's own config. A library does not write a field that equals its
# default, so a field that is missing in the export is no reason to copy it.
DECIDED_BY_THE_WEIGHTS = (
    *("quantization_config", "_name_or_path", "dtype", "torch_dtype"),
    *("tie_word_embeddings", "vocab_size", "transformers_version"),
    *ATTENTION_KEYS,
)
STALE_TOKENIZER_KEYS = ("is_local", "local_files_only", "name_or_path", "chat_template")
# Name in transformers 5 -> name of the same class in transformers 4.x.
OLDER_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
PROBE_CHATS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "What is 2 + 2?"),),
    (("system", "Be brief."), ("user", "Name a city.\nOne word.")),
    (("user", "Hello."), ("assistant", "Hello, who is there?"), ("user", 'Me — "it\'s I".')),
)


def write_serving_files(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin
) -> None:
    """Complete a folder that holds merged weights and their `config.json`.

    Notes for the person who will serve the model go to stderr.

    Raises: ExportError if the exported tokenizer gives other prompts than in training.
    """
    base = BaseFiles.find(origin.model_name_or_path, origin.revision)
    write_config(folder, base.read_json(MODEL_CONFIG_FILE))
    write_shared_serving_files(folder, tokenizer, origin, base)
    write_modelfile(folder)


def write_adapter_serving_files(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin
) -> None:
    """Complete an adapter folder, including its card. The model config stays with the base model.

    Raises: ExportError if the exported tokenizer gives other prompts than in training.
    """
    base = BaseFiles.find(origin.model_name_or_path, origin.revision)
    write_shared_serving_files(folder, tokenizer, origin, base)
    write_modelfile(folder, adapter_base=origin.model_name_or_path)
    write_card(folder, make_adapter_card(origin, base.read_licence()))


def write_merged_card(folder: Path, origin: AdapterOrigin, report: Mapping[str, Any]) -> None:
    """Write the card of a merged model after its verification."""
    licence = BaseFiles.find(origin.model_name_or_path, origin.revision).read_licence()
    write_card(folder, make_merged_card(origin, report, licence))


def write_card(folder: Path, card: str) -> None:
    """Write the card as the README of a folder."""
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def write_shared_serving_files(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin, base: BaseFiles
) -> None:
    """Write the files of merged models and adapters: tokenizer, template, stop tokens, licence."""
    base.copy_to(folder)
    inherited = base.read_json(GENERATION_CONFIG_FILE)
    inherited.setdefault("eos_token_id", base.read_json(MODEL_CONFIG_FILE).get("eos_token_id"))
    write_generation_config(folder, tokenizer, origin.stop_token_ids, inherited)
    write_tokenizer(folder, tokenizer, origin)
    check_same_prompts(folder, tokenizer, origin.chat_template_kwargs or {}, origin.template_date)
    if origin.template_date is None and depends_on_date(tokenizer):
        say(
            "note: the chat template shows the date. Training used one date, but a server uses the "
            "date of each request. To keep one date, set data.template_date in the recipe."
        )


# --- config.json ----------------------------------------------------------------------------------


def write_config(folder: Path, base: Mapping[str, Any]) -> None:
    """Change `config.json` so that older programs read the same model.

    Args:
        base: The base model's own config, as its authors published it.
    """
    config = read_json(folder / MODEL_CONFIG_FILE)
    _repair_config(config, base)
    write_json(folder / MODEL_CONFIG_FILE, config)


def _repair_config(config: dict[str, Any], base: Mapping[str, Any]) -> None:
    """Change one config and the configs of its parts, such as the text model of a larger model."""
    for key in STALE_CONFIG_KEYS:
        config.pop(key, None)
    for key, value in base.items():  # the library drops or renames some fields when it saves
        if key not in DECIDED_BY_THE_WEIGHTS:
            config.setdefault(key, value)
    _add_older_names(config)
    for name, part in config.items():
        if isinstance(part, dict) and name.endswith("_config"):
            _repair_config(part, base.get(name) or {})


def _add_older_names(config: dict[str, Any]) -> None:
    """Add the older names `torch_dtype`, `rope_theta` and `rope_scaling` of three fields.

    transformers 4.x, vLLM and llama.cpp's converter read these names. Without them transformers
    4.56 silently uses its default RoPE base of 10,000. transformers 5 reads both names
    (modeling_rope_utils 5.23, `convert_rope_params_to_dict`). A value from the base model's own
    config stays, because some programs are strict about its form.
    """
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return  # no RoPE, or one RoPE per kind of layer, which transformers 4.x cannot express
    moved = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in moved}
    moved["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    for key, value in moved.items():
        config.setdefault(key, value)


# --- generation_config.json -----------------------------------------------------------------------


def write_generation_config(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    inherited: Mapping[str, Any],
) -> None:
    """Write the base model's own generation config, with every stop token of training.

    The file is written as plain JSON, because `GenerationConfig.save_pretrained` refuses settings
    that some base models have (a temperature without sampling). Private keys are removed: because
    of `_from_model_config`, transformers 4.x may replace the file by values from `config.json`,
    which has only one stop token.
    """
    eos = inherited.get("eos_token_id")
    kept = eos if isinstance(eos, list) else [] if eos is None else [eos]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stops = sorted(set(stop_token_ids) or {*kept, *own})
    config = {
        key: value
        for key, value in inherited.items()
        if value is not None and not key.startswith("_")
    }
    config["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if not stops:
        del config["eos_token_id"]
    for name in ("bos_token_id", "pad_token_id"):
        if (token := getattr(tokenizer, name)) is not None:
            config[name] = token
    write_json(folder / GENERATION_CONFIG_FILE, config)


# --- tokenizer ------------------------------------------------------------------------------------


def write_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin
) -> None:
    """Write the tokenizer, and its template with defaults, for transformers 5 and 4.x."""
    exported = copy.copy(tokenizer)  # a shallow copy, because only the template differs
    exported.chat_template = set_defaults_in_templates(
        tokenizer.chat_template, origin.chat_template_kwargs, origin.template_date
    )
    exported.save_pretrained(folder)
    config = read_json(folder / TOKENIZER_CONFIG_FILE)
    for key in STALE_TOKENIZER_KEYS:
        config.pop(key, None)
    # transformers 4.x calls .keys() on extra_special_tokens. Both versions accept a list under the
    # older name.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    kind = str(config.get("tokenizer_class"))
    config["tokenizer_class"] = OLDER_TOKENIZER_CLASSES.get(kind, kind)
    write_json(folder / TOKENIZER_CONFIG_FILE, config)


def set_defaults_in_templates(
    template: Any, kwargs: Mapping[str, Any] | None, day: str | None
) -> Any:
    """Return the template, or each of several named templates, with the recipe's defaults."""
    if isinstance(template, dict):
        return {name: set_template_defaults(text, kwargs, day) for name, text in template.items()}
    return set_template_defaults(template, kwargs, day) if template else template


def check_same_prompts(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any],
    day: str | None = None,
) -> None:
    """Check that the exported tokenizer gives the same prompt ids as in training.

    Raises: ExportError that shows the first different prompt.
    """
    reloaded = load_saved_tokenizer(folder)
    trained = copy.copy(tokenizer)
    trained.chat_template = set_defaults_in_templates(tokenizer.chat_template, None, day)
    for probe in PROBE_CHATS:
        text = "\n".join(content for _role, content in probe)
        expected, found = (list(each(text)["input_ids"]) for each in (tokenizer, reloaded))
        if expected == found and tokenizer.chat_template:
            expected = make_prompt(trained, probe, template_kwargs)
            found = make_prompt(reloaded, probe, {})
        if expected != found:
            raise ExportError(
                f"the exported tokenizer gives other ids than in training: {found}, not {expected}",
                f"{folder}  {text!r}",
                "please report this with the name of the base model",
            )


def make_prompt(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[tuple[str, str]],
    template_kwargs: Mapping[str, Any],
) -> Any:
    """Return the ids of the prompt before an answer, or the error if the template refuses it."""
    messages = [{"role": role, "content": text} for role, text in chat]
    try:
        return tokenize_prompt(tokenizer, messages, template_kwargs)
    except TemplateRefusal as error:
        return str(error)


# --- Modelfile ------------------------------------------------------------------------------------


def write_modelfile(folder: Path, adapter_base: str | None = None) -> None:
    """Write an Ollama Modelfile. Print a note for each thing that it cannot hold."""
    tokenizer = load_saved_tokenizer(folder)
    text, notes = make_modelfile(
        tokenizer, read_json(folder / GENERATION_CONFIG_FILE), adapter_base
    )
    (folder / MODELFILE).write_text(text, encoding="utf-8")
    for note in notes:
        say(f"note: {note}")
