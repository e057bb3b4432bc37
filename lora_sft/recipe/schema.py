"""Every section of the recipe: its settings with their defaults, bounds and descriptions.

The sections `data` and `task` are in the folder `sections`, and all others are in this file. The
settings of `adapter`, `quantization` and `train` come from the libraries (see
`library_fields`). For these three sections this file holds only our defaults, additions and bounds.
"""

# ruff: noqa: RUF009 (each call of `setting` makes a new dataclass field, not a shared default)
# No `from __future__ import annotations` here: `make_field` needs the annotations as types.
import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lora_sft.recipe.fields import Field, Section
from lora_sft.recipe.library_fields import library_fields
from lora_sft.recipe.other_names import ADAPTER_SET_BY_RUN, TRAIN_OWNED_ELSEWHERE
from lora_sft.recipe.sections.data import DataSection
from lora_sft.recipe.sections.settings import (
    RecipeSection,
    location_field,
    section_fields,
    setting,
)
from lora_sft.recipe.sections.task import TaskSection

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class ModelSection(RecipeSection):
    """The base model. `model: NAME` is short for `model: {model_name_or_path: NAME}`."""

    model_name_or_path: str = setting(
        path_kind="model",
        located_as="location",
        example="Qwen/Qwen3-0.6B",
        help="A local folder (relative to this file) if it exists, else a model of the Hub.",
    )
    revision: str | None = setting(None, help="Branch, tag or commit on the Hub.")
    dtype: Dtype = setting("bfloat16", help="Data type of the weights that are not quantized.")
    attn_implementation: (
        Literal[
            "eager",
            "sdpa",
            "flash_attention_2",
            "flash_attention_3",
            "flash_attention_4",
            "flex_attention",
        ]
        | None
    ) = setting(None, help="Null: the library chooses, and `train` prints the choice.")
    trust_remote_code: bool = setting(
        False, help="Run Python code from the model's repository. Needs a fixed revision."
    )
    location: str = location_field()

    def at(self, location: str) -> "ModelSection":
        """Return the same model with another local folder as its location, without a revision."""
        return dataclasses.replace(
            self, model_name_or_path=location, location=location, revision=None
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerSection(RecipeSection):
    """The tokenizer, if you need another one than the model's, or other special tokens."""

    path: str | None = setting(
        None, path_kind="model", located_as="location", help="Null: the model's own tokenizer."
    )
    pad_token: str | None = setting(None, help="Null: the tokenizer's own, else a safe one.")
    eos_token: str | None = setting(None, help="Null: the tokenizer's own.")
    new_tokens: list[str] = setting([], help="Tokens to add. Not available in this version.")
    location: str = location_field()


@dataclass(frozen=True, kw_only=True)
class AdapterSection(RecipeSection):
    """The LoRA adapter. `lora` holds the LoraConfig settings with our defaults filled in."""

    lora: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(ADAPTER_DEFAULTS))
    init_from: str | None = setting(
        None,
        path_kind="model",
        located_as="init_from_location",
        help="Continue training this saved adapter, with its own rank and target modules.",
    )
    init_from_location: str = location_field()


@dataclass(frozen=True, kw_only=True)
class EvaluateSection(RecipeSection):
    """How `lora-sft evaluate` scores the model. It always reports the loss."""

    metrics: list[str] = setting(
        ["exact_match"], help="Metrics: `exact_match`, `final_number`. Empty: loss and samples."
    )
    max_new_tokens: int = setting(256, at_least=1, help="Maximum number of tokens per answer.")
    batch_size: int = setting(8, at_least=1, help="Rows per batch.")
    num_samples: int = setting(3, at_least=0, help="Number of answers to show as samples.")


@dataclass(frozen=True, kw_only=True)
class ExportSection(RecipeSection):
    """Files to make from the adapter after training. Without `merge`, only the adapter is kept."""

    merge: str | None = setting(
        None,
        help="Also write merged weights, to this folder (relative to the current directory).",
    )
    dtype: Dtype | None = setting(
        None, help="Data type of the merged weights. Null: the value of model.dtype."
    )
    push_to_hub: str | None = setting(
        None,
        help="Upload to this repository (owner/name): the merged weights if `merge` is set, else "
        "the adapter. A repository that does not exist yet is created as private.",
    )


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "tokenizer": TokenizerSection,
    "task": TaskSection,
    "data": DataSection,
    "evaluate": EvaluateSection,
    "export": ExportSection,
}
TOP_LEVEL = (
    "extends", "model", "tokenizer", "quantization", "adapter", "task", "data", "train",
    "evaluate", "export", "output_dir",
)  # fmt: skip

# BitsAndBytesConfig computes in float32 by default, which is many times slower than the model's
# dtype. So `bnb_4bit_compute_dtype` is `model.dtype` if the recipe does not set it.
QUANTIZATION_PRESETS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}

ADAPTER_DEFAULTS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
}

# Only the defaults that differ from TRL's, and `seed`. If `optim` is null, the run chooses the
# optimizer from the device and the quantization.
TRAIN_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "global_batch_size": 16,
    "optim": None,
    "seed": 42,
    "early_stopping_patience": None,
}
TRAIN_ADDITIONS: dict[str, Field] = {
    "global_batch_size": Field(
        ("integer", "null"),
        default=16,
        at_least=1,
        help="Sequences per optimizer step, over all processes. With packing, a sequence is a "
        "packed row. The number of accumulation steps follows from it.",
    ),
    "early_stopping_patience": Field(
        ("integer", "null"),
        at_least=1,
        help="Stop training after this many evaluations without improvement. Null: never.",
    ),
}


@cache
def adapter_fields() -> dict[str, Field]:
    """Return `init_from`, and the LoraConfig settings that a recipe may set, with our defaults."""
    fields = library_fields("LoraConfig")
    ours = {name: fields[name] for name in fields if name not in ADAPTER_SET_BY_RUN}
    _adjust(ours, ADAPTER_DEFAULTS, _ADAPTER_BOUNDS)
    return {**ours, **section_fields(AdapterSection)}


@cache
def quantization_fields() -> dict[str, Field]:
    """Return the settings of BitsAndBytesConfig."""
    return library_fields("BitsAndBytesConfig")


@cache
def train_fields() -> dict[str, Field]:
    """Return the settings of SFTConfig with our defaults, bounds, wider types and additions."""
    fields = library_fields("SFTConfig")
    ours = {name: fields[name] for name in fields if name not in TRAIN_OWNED_ELSEWHERE}
    for name, (types, choices) in _TRAIN_EXTRA_TYPES.items():
        ours[name] = ours[name].widened(*types, choices=choices)
    ours |= TRAIN_ADDITIONS
    _adjust(ours, TRAIN_DEFAULTS, _TRAIN_BOUNDS)
    return ours


def _adjust(
    fields: dict[str, Field], defaults: dict[str, Any], bounds: dict[str, dict[str, Any]]
) -> None:
    """Replace defaults and bounds of fields of TRL, PEFT or bitsandbytes by ours."""
    for name, default in defaults.items():
        fields[name] = dataclasses.replace(fields[name], default=default)
    for name, limits in bounds.items():
        fields[name] = dataclasses.replace(fields[name], **limits)


_ADAPTER_BOUNDS: dict[str, dict[str, Any]] = {
    "r": {"at_least": 1},
    "lora_alpha": {"above": 0},
    "lora_dropout": {"at_least": 0, "below": 1},
}
_TRAIN_BOUNDS: dict[str, dict[str, Any]] = {
    "learning_rate": {"above": 0},
    "num_train_epochs": {"above": 0},
    "per_device_train_batch_size": {"at_least": 1},
    "per_device_eval_batch_size": {"at_least": 1},
    "gradient_accumulation_steps": {"at_least": 1},
    "warmup_steps": {"at_least": 0},
    "weight_decay": {"at_least": 0},
    "max_grad_norm": {"at_least": 0},
    "logging_steps": {"above": 0},
    "save_steps": {"above": 0},
    "eval_steps": {"above": 0},
    "save_total_limit": {"at_least": 1},
}
_TRAIN_EXTRA_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "per_device_train_batch_size": (("string",), ("auto",)),
    "activation_checkpointing": (("integer", "string"), ("auto",)),
    "gradient_checkpointing": (("integer", "string"), ("auto",)),
    "gradient_accumulation_steps": (("null",), ()),
    "optim": (("null",), ()),
}
