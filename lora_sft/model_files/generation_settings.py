"""Read the `generation_config.json` of a model: the stop tokens and the settings for its answers.

transformers takes a value of any type from this file, and fails at the first answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_sft.errors import ModelError
from lora_sft.model_files.json_files import REPLACE_IT, Kinds, read_json_object

LARGEST_TOKEN_ID = 2**31 - 1  # the library tokenizers has 32 bits for an id
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_NUMBER, _TOKENS = float | None, int | list[int] | None
# transformers 5.23 `GenerationConfig`: the fields that are common in models.
KINDS: Kinds = {
    **dict.fromkeys(TOKEN_FIELDS, _TOKENS),
    "begin_suppress_tokens": list[int] | None,
    "cache_implementation": str | None,
    "do_sample": bool | None,
    "early_stopping": bool | str | None,
    "encoder_repetition_penalty": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "eta_cutoff": _NUMBER,
    "forced_bos_token_id": _TOKENS,
    "forced_eos_token_id": _TOKENS,
    "guidance_scale": _NUMBER,
    "length_penalty": _NUMBER,
    "max_length": int | None,
    "max_new_tokens": int | None,
    "max_time": _NUMBER,
    "min_length": int | None,
    "min_new_tokens": int | None,
    "min_p": _NUMBER,
    "no_repeat_ngram_size": int | None,
    "num_beams": int | None,
    "num_return_sequences": int | None,
    "output_attentions": bool | None,
    "output_hidden_states": bool | None,
    "output_logits": bool | None,
    "output_scores": bool | None,
    "prefill_chunk_size": int | None,
    "renormalize_logits": bool | None,
    "repetition_penalty": _NUMBER,
    "return_dict_in_generate": bool | None,
    "stop_strings": str | list[str] | None,
    "suppress_tokens": list[int] | None,
    "temperature": _NUMBER,
    "top_k": _NUMBER,
    "top_p": _NUMBER,
    "typical_p": _NUMBER,
    "use_cache": bool | None,
}


def read_generation_settings(path: Path) -> dict[str, Any]:
    """Return the content of a `generation_config.json`; empty if the file does not exist.

    Raises: ModelError if the file is damaged.
    """
    if not path.exists():
        return {}
    settings: dict[str, Any] = read_json_object(path, KINDS)
    for name in TOKEN_FIELDS:
        for token in list_token_ids(settings.get(name)):
            if not 0 <= token <= LARGEST_TOKEN_ID:
                what = f"{path.name}: {name} {token} cannot be the id of a token"
                raise ModelError(what, f"{path}  {name}", REPLACE_IT)
    return settings


def list_token_ids(value: int | list[int] | None) -> list[int]:
    """Return the token ids of a field, which may be one id, a list, or null."""
    return value if isinstance(value, list) else [] if value is None else [value]
