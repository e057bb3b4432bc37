"""Load the tokenizer with the recipe's template and special tokens, and find its stop tokens.

No other file loads a tokenizer, because training, evaluation and export must use the same ids. The
vocabulary is never resized here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.exceptions import TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lora_sft.data.templates.render_budget import TemplateOverBudget
from lora_sft.data.templates.rendering import list_templates, name_template
from lora_sft.data.templates.template_environment import (
    LONGEST_TEMPLATE_CHARACTERS,
    compile_template,
)
from lora_sft.errors import DataError, LoraSftError, ModelError
from lora_sft.file_names import (
    CHAT_TEMPLATE_FILE,
    GENERATION_CONFIG_FILE,
    MODEL_CONFIG_FILE,
    SENTENCEPIECE_FILE,
    TOKENIZER_CONFIG_FILE,
)
from lora_sft.folder_links import leads_outside
from lora_sft.model_files import remote_code
from lora_sft.model_files.base_checkpoint import find_model_file
from lora_sft.model_files.generation_settings import list_token_ids, read_generation_settings
from lora_sft.model_files.json_files import REPLACE_IT, Kinds, read_json_object
from lora_sft.shown_text import make_one_line

if TYPE_CHECKING:
    from lora_sft.recipe import DataSection, ModelSection, TokenizerSection

PLAIN_TEMPLATE = "plain"
PLAIN_TEMPLATE_FILE = Path(__file__).with_name("plain.jinja")
TOKENIZER_FILES = (
    "tokenizer.json",
    SENTENCEPIECE_FILE,
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
# The files that AutoTokenizer reads, if they exist. Each holds a JSON object.
JSON_FILES = (
    *("tokenizer.json", TOKENIZER_CONFIG_FILE, MODEL_CONFIG_FILE),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
# Fields of `tokenizer_config.json` that libraries read without a check.
CONFIG_KINDS: Kinds = {
    "chat_template": str | list[Any] | dict[str, Any] | None,
    "model_max_length": float | None,
}
# Loading reads these too, and saving writes their content again.
FILES_BESIDE_TOKENIZER = (
    *("tokenizer*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *(CHAT_TEMPLATE_FILE, "chat_template.json", "additional_chat_templates/*"),
)
# Tokens that base models have for padding, or do not use. Padding is never learned, so any works.
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>")


def load_tokenizer(
    model: ModelSection, tokenizer: TokenizerSection, data: DataSection
) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the recipe describes, ready for use.

    Raises:
        ModelError: If it cannot be loaded, or lacks a token.
        DataError: If its chat template cannot be read or compiled.
    """
    own_path = tokenizer.path is not None
    location = str(tokenizer.location if own_path else model.location)
    if tokenizer.new_tokens:
        raise ModelError(
            "new tokens cannot be added yet", "tokenizer.new_tokens", "set new_tokens: []"
        )
    loaded = _load(location, None if own_path else model.revision, model.trust_remote_code)
    _apply_token(loaded, "eos_token", tokenizer.eos_token)
    _apply_token(loaded, "pad_token", tokenizer.pad_token)
    if loaded.pad_token is None:
        loaded.pad_token = _choose_pad_token(loaded)
    _apply_template(loaded, data.chat_template_location or data.chat_template)
    _check_templates_compile(loaded, data.chat_template, location)
    return loaded


def _load(location: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    _check_tokenizer_files(Path(location))
    config = Path(location, TOKENIZER_CONFIG_FILE)
    if config.exists():
        read_json_object(config, CONFIG_KINDS)
    where = f"{location} @ {revision}" if revision else location
    if trust_remote_code:
        remote_code.check_remote_code(location, revision)
    try:
        loaded = AutoTokenizer.from_pretrained(
            location, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except LoraSftError:
        raise
    except Exception as error:  # transformers and tokenizers raise many classes
        damage = _find_damage(Path(location))
        if damage is not None:
            raise damage from error
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the tokenizer cannot be loaded: {first_line}",
            where,
            remote_code.FIX
            if remote_code.needs_trust(error)
            else "check model.model_name_or_path and revision, or name a tokenizer in "
            "tokenizer.path",
        ) from error
    if not loaded.is_fast:
        raise ModelError(
            "the tokenizer has no fast version, which is needed to find where each token begins",
            where,
            "set tokenizer.path to a folder with a tokenizer.json",
        )
    return loaded


def _find_damage(folder: Path) -> ModelError | None:
    """Return an error that names a damaged file of a local tokenizer; None if there is none."""
    try:
        for name in JSON_FILES:
            if (folder / name).exists():
                read_json_object(folder / name)
    except ModelError as error:
        return error
    return None


def _check_tokenizer_files(folder: Path) -> None:
    """Check the files of a local tokenizer before it is loaded.

    Raises: ModelError if there are none, or if one is a link to a file elsewhere. Its content would
        be saved beside the adapter, and published with it.
    """
    if not folder.is_dir():
        return
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"the folder holds no tokenizer (looked for {', '.join(TOKENIZER_FILES)})",
            str(folder),
            "copy the tokenizer's files there, or name another folder in tokenizer.path",
        )
    for pattern in (*TOKENIZER_FILES, *FILES_BESIDE_TOKENIZER):
        for path in folder.glob(pattern):
            if leads_outside(path, folder):
                raise ModelError(
                    "a file of the tokenizer is a link to a file outside of its folder "
                    f"({path.resolve()})",
                    str(path),
                    "if you may publish this file with the adapter, replace the link by a copy of "
                    "the file, or name the folder of the original in tokenizer.path",
                )


def _apply_token(tokenizer: PreTrainedTokenizerBase, field: str, token: str | None) -> None:
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise ModelError(
            f'"{token}" is not in the vocabulary',
            f"tokenizer.{field}",
            f"name a token of the vocabulary; its special tokens are {_list_special(tokenizer)}",
        )
    setattr(tokenizer, field, token)


def _list_special(tokenizer: PreTrainedTokenizerBase) -> str:
    return ", ".join(str(token) for token in tokenizer.all_special_tokens) or "(none)"


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a padding token from the vocabulary. Use eos only if there is no other.

    Labels never depend on the padding id, so padding with eos does not hide a stop token.
    """
    vocabulary = tokenizer.get_vocab()
    eos = tokenizer.eos_token
    known = [name for name in PAD_CANDIDATES if name in vocabulary and name != eos]
    return next(iter(known), None) or tokenizer.unk_token or eos


def _apply_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    if chat_template is None:
        return
    if chat_template == PLAIN_TEMPLATE:
        _check_has_eos(tokenizer)
        tokenizer.chat_template = PLAIN_TEMPLATE_FILE.read_text(encoding="utf-8")
        return
    try:
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the chat template cannot be read: {error}",
            "data.chat_template",
            f"name a .jinja file, or write {PLAIN_TEMPLATE} for the template of lora-sft",
        ) from error


def _check_templates_compile(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, location: str
) -> None:
    """Check that every template of the tokenizer compiles, before a row is read.

    Jinja turns a template into Python code. Python's compiler then has its own limits, for example
    on the depth of nested blocks.

    Raises: DataError if a template does not compile. TemplateOverBudget if it is too long.
    """
    templates = list_templates(tokenizer)
    if sum(map(len, templates.values())) > LONGEST_TEMPLATE_CHARACTERS:
        reason = f"the templates have over {LONGEST_TEMPLATE_CHARACTERS:,} characters"
        raise TemplateOverBudget(reason, place=name_template(tokenizer, chat_template))
    for name, text in templates.items():
        own = f"the tokenizer's own template {name}: {location}"
        place = f"data.chat_template: {chat_template}" if chat_template else own
        try:
            compile_template(text)
        except TemplateOverBudget as error:
            raise error.at(place) from None
        except (jinja2.TemplateError, SyntaxError, ValueError) as error:
            line = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
            raise DataError(
                f"the chat template does not compile: {make_one_line(str(error))}{line}",
                place,
                "correct the template"
                if chat_template
                else f"name a .jinja file in data.chat_template, or write {PLAIN_TEMPLATE} for the "
                "template of lora-sft",
            ) from error


def _check_has_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.eos_token is None:
        raise ModelError(
            "the plain template ends turns with the eos token, and the tokenizer has no eos token",
            "data.chat_template: plain",
            "name a token in tokenizer.eos_token",
        )


def find_stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, model: ModelSection, extra: Iterable[str]
) -> frozenset[int]:
    """Return the ids of the tokens at which a server ends an answer.

    They are the eos token of the tokenizer, those in `generation_config.json`, and `extra`, which
    the recipe names.

    Raises: DataError if a name in `extra` is not a token of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    stops = set(_read_generation_eos(str(model.location), model.revision))
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    for name in extra:
        if name not in vocabulary:
            raise DataError(
                f'the stop token "{name}" is not in the vocabulary',
                "data.stop_tokens",
                "name a token of the vocabulary; its special tokens are "
                f"{_list_special(tokenizer)}",
            )
        stops.add(vocabulary[name])
    return frozenset(stops)


def _read_generation_eos(location: str, revision: str | None) -> list[int]:
    """Return the eos ids in the base model's `generation_config.json`.

    Many base models do not have this file. The list is then empty.

    Raises: ModelError if the file is damaged.
    """
    path = find_model_file(location, revision, GENERATION_CONFIG_FILE)
    if path is None:
        return []
    return list_token_ids(read_generation_settings(path).get("eos_token_id"))


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything in the tokenizer that decides ids.

    Another version of the library `tokenizers` may write the same tokenizer in another form, and
    give another hash. Truncation and padding are not hashed, because each call sets them anew.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    decides = {name: backend[name] for name in backend if name not in ("truncation", "padding")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    text = json.dumps([decides, special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_saved_tokenizer(
    location: str | Path, revision: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a run, an adapter, a merged model or a base model, as saved.

    Raises:
        ModelError: If it cannot be loaded, or if its chat template does not compile.
        TemplateOverBudget: If its chat template is too long.
    """
    loaded = _load(str(location), revision, trust_remote_code)
    try:
        _check_templates_compile(loaded, None, str(location))
    except TemplateOverBudget:
        raise
    except DataError as error:
        raise ModelError(error.what, error.where, REPLACE_IT) from error
    return loaded


def find_saved_stop_token_ids(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Return the ids of the stop tokens of a saved model or adapter.

    They are the eos token of the tokenizer, and those in `generation_config.json` in the folder.
    """
    own = {tokenizer.eos_token_id} - {None}
    return frozenset(_read_generation_eos(str(folder), None)) | own
