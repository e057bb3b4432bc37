"""Decide whether the Python files of a model's repository may run, and name them before they do.

Trust comes from the person who starts a command: from the recipe that the command line names, or
from its option `--trust-remote-code`. It never comes from a file that lies beside a model, an
adapter or a run: whoever made the folder wrote that file too.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from lora_sft.errors import ModelError
from lora_sft.file_names import MODEL_CONFIG_FILE, TOKENIZER_CONFIG_FILE
from lora_sft.log import say
from lora_sft.model_files.base_checkpoint import find_model_file
from lora_sft.recipe.locations import is_fixed

OPTION = "--trust-remote-code"
FIX = f"if you trust that code, add {OPTION}, or write model.trust_remote_code: true"


def check_remote_code(location: str, revision: str | None) -> None:
    """Check that trusted code cannot change unseen, and print the names of its files once.

    Call this before transformers loads a config, a model or a tokenizer with trust.

    Args:
        location: A folder, or a hub id.
        revision: The revision of the hub id.

    Raises: ModelError if the revision of a hub id is not fixed, or if a config names code of
        another repository: transformers would take that code from its newest revision.
    """
    if not is_fixed(location, revision):
        raise ModelError(
            f"{location} would run Python code, and without a fixed revision this code can change",
            f"{OPTION}, model.trust_remote_code",
            "name a local folder, or set model.revision to a commit whose code you have read",
        )
    _announce(location, revision)


def needs_trust(error: Exception) -> bool:
    """Return whether transformers refused a model because its code is not trusted."""
    return "trust_remote_code" in str(error)


@cache
def _announce(location: str, revision: str | None) -> None:
    names = sorted({name for file in _CONFIGS for name in _list_code(location, revision, file)})
    foreign = [name for name in names if "--" in name]
    if foreign:
        raise ModelError(
            f"the config names code of another repository: {foreign[0]}",
            location,
            "download that code into a local folder of the model, and name it without `REPO--`",
        )
    if names:
        files = ", ".join(dict.fromkeys(f"{name.partition('.')[0]}.py" for name in names))
        say(f"running Python code of {location}: {files}")


_CONFIGS = (MODEL_CONFIG_FILE, TOKENIZER_CONFIG_FILE, "processor_config.json")


def _list_code(location: str, revision: str | None, file: str) -> list[str]:
    """Return the classes of a config's `auto_map`, such as `modeling_x.XForCausalLM`."""
    path = find_model_file(location, revision, file)
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return []  # transformers reports it when it loads the file
    names: list[Any] = []
    for value in (config.get("auto_map") or {}).values() if isinstance(config, dict) else ():
        names += value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str)]
