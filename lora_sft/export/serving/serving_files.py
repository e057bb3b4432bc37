"""Make a folder of weights one that any server reads the same: tokenizer, template, configs.

transformers 5 saves a model for transformers 5. Servers and converters are older or other
programs, and where they do not know a field they do not complain: they take their own default
(another RoPE base, no stop token) and answer nonsense. Each function here mends one file so that
older readers (transformers 4.x, what vLLM, SGLang and llama.cpp build on) get the same model;
nothing that transformers 5 needs is taken away, and the prompt that a reloaded tokenizer renders is
compared with the one that training rendered before the folder is called ready.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from lora_sft.data.templates.rendering import TEMPLATE_FAULTS, depends_on_date
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
# Left behind by loading and training; wrong or meaningless in an export.
STALE_CONFIG_KEYS = ("quantization_config", "_name_or_path", "use_cache")  # use_cache: the base's
# Never the base's where the export says nothing: a library leaves out what equals its default.
DECIDED_BY_THE_WEIGHTS = (
    *("quantization_config", "_name_or_path", "dtype", "torch_dtype"),
    *("tie_word_embeddings", "vocab_size", "transformers_version"),
)
STALE_TOKENIZER_KEYS = ("is_local", "local_files_only", "name_or_path", "chat_template")
# Names that only transformers 5 knows, and what 4.x calls the same thing.
OLDER_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
PROBES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "What is 2 + 2?"),),
    (("system", "Be brief."), ("user", "Name a city.\nOne word.")),
    (("user", "Hello."), ("assistant", "Hello, who is there?"), ("user", 'Me — "it\'s I".')),
)


def write_serving_files(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin
) -> None:
    """Finish a folder that holds merged weights and their `config.json`.

    What a person should know before serving it is said on stderr.

    Raises: ExportError where the reloaded tokenizer does not give the prompts of training.
    """
    base = BaseFiles.find(origin.model_name_or_path, origin.revision)
    write_config(folder, base.read_json(MODEL_CONFIG_FILE))
    write_answering_files(folder, tokenizer, origin, base)
    write_modelfile(folder)


def write_adapter_serving_files(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin
) -> None:
    """The same for an adapter, card included: all but the model's config, which is the base's."""
    base = BaseFiles.find(origin.model_name_or_path, origin.revision)
    write_answering_files(folder, tokenizer, origin, base)
    write_modelfile(folder, adapter_base=origin.model_name_or_path)
    write_card(folder, make_adapter_card(origin, base.read_licence()))


def write_merged_card(folder: Path, origin: AdapterOrigin, report: Mapping[str, Any]) -> None:
    """The card of merged weights, once it is known how they were verified."""
    licence = BaseFiles.find(origin.model_name_or_path, origin.revision).read_licence()
    write_card(folder, make_merged_card(origin, report, licence))


def write_card(folder: Path, card: str) -> None:
    """The folder's README."""
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def write_answering_files(
    folder: Path, tokenizer: PreTrainedTokenizerBase, origin: AdapterOrigin, base: BaseFiles
) -> None:
    """Tokenizer, chat template and stop tokens, and what the base's licence asks to carry on."""
    base.copy_to(folder)
    inherited = base.read_json(GENERATION_CONFIG_FILE)
    inherited.setdefault("eos_token_id", base.read_json(MODEL_CONFIG_FILE).get("eos_token_id"))
    write_generation_config(folder, tokenizer, origin.stop_token_ids, inherited)
    write_tokenizer(folder, tokenizer, origin)
    check_same_prompts(folder, tokenizer, origin.chat_template_kwargs or {}, origin.template_date)
    if origin.template_date is None and depends_on_date(tokenizer):
        say(
            "note: the chat template tells the day; served, it tells the day of the request, and "
            "training saw one day (data.template_date in the recipe keeps that day)"
        )


# --- config.json ----------------------------------------------------------------------------------


def write_config(folder: Path, base: Mapping[str, Any]) -> None:
    """Mend `config.json` in place; `base` is the base's own, as its authors published it."""
    config = read_json(folder / MODEL_CONFIG_FILE)
    _mend_config(config, base)
    write_json(folder / MODEL_CONFIG_FILE, config)


def _mend_config(config: dict[str, Any], base: Mapping[str, Any]) -> None:
    """One config, and those of its parts (the text model of a model of several parts)."""
    for key in STALE_CONFIG_KEYS:
        config.pop(key, None)
    for key, value in base.items():  # what the library drops or renames when it saves
        if key not in DECIDED_BY_THE_WEIGHTS:
            config.setdefault(key, value)
    _add_older_names(config)
    for name, part in config.items():
        if isinstance(part, dict) and name.endswith("_config"):
            _mend_config(part, base.get(name) or {})


def _add_older_names(config: dict[str, Any]) -> None:
    """`torch_dtype`, `rope_theta` and `rope_scaling` beside what transformers 5 calls them.

    transformers 4.x, vLLM and llama.cpp's converter read these; without them 4.56 takes its own
    default RoPE base of 10,000 and says nothing. transformers 5 reads either
    (modeling_rope_utils 5.23, `convert_rope_params_to_dict`). What the base's own config says
    under these names stays: some readers are strict about its form.
    """
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return  # none, or one a kind of layer, which 4.x has no common name for
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
    """The base's own generation config, with every stop token of training.

    Written as plain JSON: some bases ship settings that `GenerationConfig.save_pretrained`
    refuses (a temperature without sampling), and it is not for an export to judge them. Private
    keys go: with `_from_model_config`, 4.x may make the whole file anew from `config.json`, which
    knows one stop token.
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
    """The tokenizer as trained with, its template's defaults set, in files that 4.x reads too."""
    exported = copy.copy(tokenizer)  # the template alone differs; the vocabulary is shared
    exported.chat_template = with_defaults(
        tokenizer.chat_template, origin.chat_template_kwargs, origin.template_date
    )
    exported.save_pretrained(folder)
    config = read_json(folder / TOKENIZER_CONFIG_FILE)
    for key in STALE_TOKENIZER_KEYS:
        config.pop(key, None)
    # 4.x calls .keys() on extra_special_tokens; both versions read the older name as a list.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    kind = str(config.get("tokenizer_class"))
    config["tokenizer_class"] = OLDER_TOKENIZER_CLASSES.get(kind, kind)
    write_json(folder / TOKENIZER_CONFIG_FILE, config)


def with_defaults(template: Any, kwargs: Mapping[str, Any] | None, day: str | None) -> Any:
    """The template, or each of several named ones, with the recipe's values as its defaults."""
    if isinstance(template, dict):
        return {name: set_template_defaults(text, kwargs, day) for name, text in template.items()}
    return set_template_defaults(template, kwargs, day) if template else template


def check_same_prompts(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any],
    day: str | None = None,
) -> None:
    """Reload the exported tokenizer and compare its prompts with those of training, id by id.

    Raises: ExportError with the first prompt that differs.
    """
    reloaded = load_saved_tokenizer(folder)
    trained = copy.copy(tokenizer)
    trained.chat_template = with_defaults(tokenizer.chat_template, None, day)
    for probe in PROBES:
        text = "\n".join(content for _role, content in probe)
        expected, found = (list(each(text)["input_ids"]) for each in (tokenizer, reloaded))
        if expected == found and tokenizer.chat_template:
            expected = make_prompt(trained, probe, template_kwargs)
            found = make_prompt(reloaded, probe, {})
        if expected != found:
            raise ExportError(
                f"the exported tokenizer gives other ids than training did: {found} for {expected}",
                f"{folder}  {text!r}",
                "please report it with the name of the base",
            )


def make_prompt(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[tuple[str, str]],
    template_kwargs: Mapping[str, Any],
) -> Any:
    """Ids of the prompt before an answer, or why the template refuses it."""
    messages = [{"role": role, "content": text} for role, text in chat]
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **template_kwargs
        )
    except TEMPLATE_FAULTS as error:
        return f"{type(error).__name__}: {error}"
    return list(ids)


# --- Modelfile ------------------------------------------------------------------------------------


def write_modelfile(folder: Path, adapter_base: str | None = None) -> None:
    """An Ollama Modelfile; what could not be written into it is said, and why."""
    tokenizer = load_saved_tokenizer(folder)
    text, notes = make_modelfile(
        tokenizer, read_json(folder / GENERATION_CONFIG_FILE), adapter_base
    )
    (folder / MODELFILE).write_text(text, encoding="utf-8")
    for note in notes:
        say(f"note: {note}")
