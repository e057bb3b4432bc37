"""Every section of the recipe: its settings with their defaults, bounds and descriptions.

The sections `model`, `tokenizer`, `data`, `evaluate` and `export` are defined completely in this
file. The settings of `adapter`, `quantization` and `train` come from the libraries (see
`library_fields`). For these three sections this file holds only our defaults, additions and bounds.
"""

# ruff: noqa: RUF009 (each call of `setting` makes a new dataclass field, not a shared default)
# No `from __future__ import annotations` here: `make_field` needs the annotations as types.
import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lora_sft.recipe.fields import REQUIRED, Field, Section, make_field
from lora_sft.recipe.library_fields import library_fields
from lora_sft.recipe.other_names import ADAPTER_SET_BY_RUN, TRAIN_OWNED_ELSEWHERE

Dtype = Literal["bfloat16", "float16", "float32"]
RowFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokenized"
]


def setting(default: Any = REQUIRED, **details: Any) -> Any:
    """Return a dataclass field that is also a setting of the recipe.

    Args:
        default: The default value. Without it, the setting is required.
        details: Passed on to the setting's `Field`.
    """
    metadata = {"setting": {"default": default, **details}}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def location_field() -> Any:
    """Return a field for the resolved location of a path. A recipe cannot set it."""
    return dataclasses.field(default="", repr=False, compare=False)


def section_fields(section: type[Section]) -> dict[str, Field]:
    """Return the settings of one of our sections, by name."""
    if section not in _FIELDS_BY_SECTION:
        _FIELDS_BY_SECTION[section] = {
            field.name: make_field(field.type, **field.metadata["setting"])
            for field in dataclasses.fields(section)  # type: ignore[arg-type]
            if "setting" in field.metadata
        }
    return _FIELDS_BY_SECTION[section]


_FIELDS_BY_SECTION: dict[type[Section], dict[str, Field]] = {}


class RecipeSection(Section):
    """A section that this file defines.

    If Python code creates a section without a location, the location is the path as given.
    """

    def __post_init__(self) -> None:
        for name, field in section_fields(type(self)).items():
            if field.located_as and not getattr(self, field.located_as):
                object.__setattr__(self, field.located_as, getattr(self, name) or "")


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
class DatasetSection(RecipeSection):
    """One data set: where its rows are, and how to read them."""

    path: str = setting(
        path_kind="data",
        located_as="location",
        example="train.jsonl",
        help="A local file, folder or glob (relative to this file) if it exists, else a URL "
        "(https, s3, gs, ...), else a data set of the Hub.",
    )
    name: str | None = setting(None, help="Configuration of a Hub data set.")
    split: str | None = setting(
        None, help="Split of a Hub data set. Null: `train` for a Hub data set, all rows for files."
    )
    revision: str | None = setting(None, help="Branch, tag or commit on the Hub.")
    data_files: str | list[str] | dict[str, Any] | None = setting(
        None, help="Files inside a Hub data set or folder, as for load_dataset."
    )
    format: RowFormat = setting("auto", help="Layout of a row. Auto: found from its columns.")
    rename_columns: dict[str, str] = setting({}, help="New column names, as `old: new`.")
    repeat: float = setting(
        1.0, above=0, help="Uses of each row per epoch. 0.5 uses the same half in every run."
    )
    location: str = location_field()


@dataclass(frozen=True, kw_only=True)
class SplitSection(RecipeSection):
    """Held-out rows: either a fraction of the training rows, or separate data sets."""

    fraction: float | None = setting(
        None,
        above=0,
        below=1,
        example=0.05,
        help="Share of the training rows to hold out. A hash of its content decides where a row "
        "goes. So equal rows stay together, no row moves when you add others, and the share is "
        "approximate.",
    )
    group_by: str | None = setting(
        None,
        example="conversation_id",
        help="A column, by its new name if it is renamed. Rows with equal values in this column "
        "share a split, so that no document is divided. Only with `fraction`.",
    )
    datasets: list[DatasetSection] | None = setting(None, help="Separate data sets.")


@dataclass(frozen=True, kw_only=True)
class DataSection(RecipeSection):
    """The rows, and which part of each row the model learns."""

    datasets: list[DatasetSection] = setting(
        example=[{"path": "train.jsonl"}], help="The training rows: one data set or several."
    )
    validation: SplitSection | None = setting(None, help="Rows to evaluate on during training.")
    test: SplitSection | None = setting(None, help="Rows that only `lora-sft evaluate` uses.")
    duplicates: Literal["keep", "drop"] = setting(
        "keep",
        help="What to do if one split contains an example more than once, in any format or data "
        "set. Drop: keep the first and count the others as `duplicate`.",
    )
    overlap: Literal["error", "drop"] = setting(
        "error",
        help="What to do if a held-out split and another split contain the same example. This can "
        "happen with separate data sets or `group_by`. Drop: keep it in test, or else in "
        "validation, and count it as `overlap` in the other split.",
    )
    chat_template: str | None = setting(
        None,
        path_kind="template",
        located_as="chat_template_location",
        help="A .jinja file, or `plain` for base models. Null: the tokenizer's own template.",
    )
    chat_template_kwargs: dict[str, Any] = setting(
        {}, help="Arguments of the template. A column of this name in a row overrides it."
    )
    template_date: str | None = setting(
        None,
        help="The date, as YYYY-MM-DD, for templates that print the current date. "
        "Null: the date of the first `prepare` or `train`, which later starts reuse.",
    )
    loss_on: Literal["auto", "assistant", "last_assistant", "completion", "all"] = setting(
        "auto",
        help="Which part of a row is learned. Auto: completion for prompt_completion, all for "
        "text, else assistant.",
    )
    rewritten_history: Literal["expand", "last", "in_place", "error"] = setting(
        "expand", help="What to do if a template changes earlier turns when later turns follow."
    )
    special_tokens_in_content: Literal["drop", "error", "escape", "allow"] = setting(
        "drop", help="What to do if a row's text contains control tokens of the template."
    )
    stop_tokens: list[str] = setting(
        [],
        help="More tokens that end an answer, in addition to those of the tokenizer, the "
        "generation config and the template.",
    )
    max_length: int = setting(
        at_least=2, example=2048, help="Maximum length of a row, in tokens. It has no default."
    )
    overlong: Literal["drop", "keep_start", "split", "error"] = setting(
        "drop", help="What to do with a row that is longer than max_length."
    )
    packing: Literal["auto"] | bool = setting(
        "auto",
        help="Put several rows into one sequence of at most max_length tokens. Auto: on if the "
        "rows stay isolated from each other and at least 32 steps per epoch remain. "
        "True: an error if the rows do not stay isolated.",
    )
    chat_template_location: str = location_field()


@dataclass(frozen=True, kw_only=True)
class EvaluateSection(RecipeSection):
    """How `lora-sft evaluate` scores the model. It always reports the loss."""

    metrics: list[str] = setting(
        ["exact_match"], help="Metrics on generated answers. Empty: only the loss and samples."
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
    "data": DataSection,
    "evaluate": EvaluateSection,
    "export": ExportSection,
}
TOP_LEVEL = (
    "extends", "model", "tokenizer", "quantization", "adapter", "data", "train", "evaluate",
    "export", "output_dir",
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
