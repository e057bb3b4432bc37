"""Every section of the recipe: its settings, their defaults, bounds and meaning, in one place.

`model`, `tokenizer`, `data`, `evaluate` and `export` are ours and are written out here. For
`adapter`, `quantization` and `train` the libraries own the names (see `library_fields`); here
stand only our defaults, our additions and what a recipe may not set.
"""

# ruff: noqa: RUF009 (`setting` makes a dataclass field, it is no shared default)
# No postponed annotations here: the annotations are read as types to make the fields.
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
    """A dataclass field that is also a setting; `details` go to its `Field`."""
    metadata = {"setting": {"default": default, **details}}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def found_at() -> Any:
    """A field for the place that a path was found at; the recipe does not set it."""
    return dataclasses.field(default="", repr=False, compare=False)


def section_fields(section: type[Section]) -> dict[str, Field]:
    """The settings of one of our sections, by name."""
    if section not in _FIELDS_BY_SECTION:
        _FIELDS_BY_SECTION[section] = {
            field.name: make_field(field.type, **field.metadata["setting"])
            for field in dataclasses.fields(section)  # type: ignore[arg-type]
            if "setting" in field.metadata
        }
    return _FIELDS_BY_SECTION[section]


_FIELDS_BY_SECTION: dict[type[Section], dict[str, Field]] = {}


class RecipeSection(Section):
    """A section of ours. Made by hand, its paths lead where they say, unresolved."""

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
        help="A local folder (relative to this file) if there is one, else a model of the Hub.",
    )
    revision: str | None = setting(None, help="Branch, tag or commit on the Hub.")
    dtype: Dtype = setting("bfloat16", help="Type of the weights that are not quantized.")
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
    ) = setting(None, help="Null: the best that is safe on this machine; it is printed.")
    trust_remote_code: bool = setting(
        False, help="Run Python code from the model's repository. Needs a fixed revision."
    )
    location: str = found_at()

    def at(self, location: str) -> "ModelSection":
        """The same model loaded from another local folder, where revisions do not exist."""
        return dataclasses.replace(
            self, model_name_or_path=location, location=location, revision=None
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerSection(RecipeSection):
    """The tokenizer, where it is not simply the model's own."""

    path: str | None = setting(
        None, path_kind="model", located_as="location", help="Null: the model's own."
    )
    pad_token: str | None = setting(None, help="Null: the tokenizer's own, else a safe choice.")
    eos_token: str | None = setting(None, help="Null: the tokenizer's own.")
    new_tokens: list[str] = setting([], help="Tokens to add; not in this version.")
    location: str = found_at()


@dataclass(frozen=True, kw_only=True)
class AdapterSection(RecipeSection):
    """The LoRA adapter: `lora` holds the LoraConfig settings, defaults filled in."""

    lora: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(ADAPTER_DEFAULTS))
    init_from: str | None = setting(
        None,
        path_kind="model",
        located_as="init_from_location",
        help="Continue training this adapter; it brings its own rank and targets.",
    )
    init_from_location: str = found_at()


@dataclass(frozen=True, kw_only=True)
class DatasetSection(RecipeSection):
    """One source of rows."""

    path: str = setting(
        path_kind="data",
        located_as="location",
        example="train.jsonl",
        help="A local file, folder or glob (relative to this file) if there is one, else a URL "
        "(https, s3, gs, ...), else a data set of the Hub.",
    )
    name: str | None = setting(None, help="Configuration of a Hub data set.")
    split: str | None = setting(
        None, help="Split of a Hub data set. Null: all rows of files, `train` of the Hub."
    )
    revision: str | None = setting(None, help="Branch, tag or commit on the Hub.")
    data_files: str | list[str] | dict[str, Any] | None = setting(
        None, help="Files inside a Hub data set or folder, as load_dataset takes them."
    )
    format: RowFormat = setting("auto", help="How a row is laid out. Auto: told from its columns.")
    rename_columns: dict[str, str] = setting({}, help="Their column name: our column name.")
    repeat: float = setting(
        1.0, above=0, help="Passes an epoch; 0.5 is a half that stays the same between runs."
    )
    location: str = found_at()


@dataclass(frozen=True, kw_only=True)
class SplitSection(RecipeSection):
    """Held-out rows: a fraction of the training rows, or data sets of their own."""

    fraction: float | None = setting(
        None,
        above=0,
        below=1,
        example=0.05,
        help="Share of the training rows to hold out, by a hash of its content: equal ones "
        "stay together, so the share is approximate, and no row moves when others are added.",
    )
    group_by: str | None = setting(
        None,
        example="conversation_id",
        help="Column (as renamed) whose equal values share a split, so that parts of one "
        "conversation or document are never on both sides. With `fraction`.",
    )
    datasets: list[DatasetSection] | None = setting(None, help="Data sets of their own.")


@dataclass(frozen=True, kw_only=True)
class DataSection(RecipeSection):
    """The rows, and what the model learns of them."""

    datasets: list[DatasetSection] = setting(
        example=[{"path": "train.jsonl"}], help="The training rows; one source or many."
    )
    validation: SplitSection | None = setting(None, help="Rows to evaluate on while training.")
    test: SplitSection | None = setting(None, help="Rows that only `evaluate` looks at.")
    duplicates: Literal["keep", "drop"] = setting(
        "keep",
        help="When a split holds the same example again, in whatever format or data set. "
        "Drop: the first stays, the others are counted as `duplicate`.",
    )
    overlap: Literal["error", "drop"] = setting(
        "error",
        help="When a held-out split and another hold the same example (in data sets, or in groups "
        "of their own). Drop: it stays in test, else in validation, and is counted as `overlap` "
        "where it leaves.",
    )
    chat_template: str | None = setting(
        None,
        path_kind="template",
        located_as="chat_template_location",
        help="Null: the tokenizer's own; a .jinja file; or `plain`, for base models.",
    )
    chat_template_kwargs: dict[str, Any] = setting(
        {}, help="Arguments of the template. A row's own column of this name wins."
    )
    template_date: str | None = setting(
        None,
        help="The day, YYYY-MM-DD, that a template sees when it asks for the date. "
        "Null: the day of the first prepare, kept.",
    )
    loss_on: Literal["auto", "assistant", "last_assistant", "completion", "all"] = setting(
        "auto",
        help="What is learned. Auto: completion for prompt_completion, all for text, "
        "else assistant.",
    )
    rewritten_history: Literal["expand", "last", "in_place", "error"] = setting(
        "expand", help="When a template renders earlier turns anew as a conversation goes on."
    )
    special_tokens_in_content: Literal["drop", "error", "escape", "allow"] = setting(
        "drop", help="When the text of a row contains the template's control tokens."
    )
    stop_tokens: list[str] = setting(
        [], help="Beside those that tokenizer, generation config and template name."
    )
    max_length: int = setting(
        at_least=2, example=2048, help="Longest row, in tokens. There is no default."
    )
    overlong: Literal["drop", "keep_start", "split", "error"] = setting(
        "drop", help="What happens to a row longer than max_length."
    )
    packing: Literal["auto"] | bool = setting(
        "auto",
        help="Several rows in one sequence of at most max_length. Auto: where they stay isolated "
        "and leave at least 32 steps an epoch, else off. True: refused where they do not.",
    )
    chat_template_location: str = found_at()


@dataclass(frozen=True, kw_only=True)
class EvaluateSection(RecipeSection):
    """How `evaluate` looks at the model; the loss is always reported."""

    metrics: list[str] = setting(
        ["exact_match"], help="Task metrics on generated answers; an empty list generates none."
    )
    max_new_tokens: int = setting(256, at_least=1, help="Longest generated answer, in tokens.")
    batch_size: int = setting(8, at_least=1, help="Rows generated at a time.")
    num_samples: int = setting(3, at_least=0, help="Answers shown in the report.")


@dataclass(frozen=True, kw_only=True)
class ExportSection(RecipeSection):
    """What is made of the adapter once training is done. Null merge: the adapter only."""

    merge: str | None = setting(
        None,
        help="Also write merged weights into this folder (relative to the current directory).",
    )
    dtype: Dtype | None = setting(
        None, help="Type of the merged weights. Null: that of the base in training (model.dtype)."
    )
    push_to_hub: str | None = setting(
        None,
        help="Repository (owner/name) for the merged weights where merge is set, else for the "
        "adapter. It is made private where it does not exist.",
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

# BitsAndBytesConfig computes in float32 unless told otherwise, many times slower than the type
# of the model; so `bnb_4bit_compute_dtype` follows `model.dtype` wherever it is left out.
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

# Only where we differ from TRL; `optim` null is decided at run time, from device and quantization.
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
        help="Sequences an optimizer step (packed ones where rows are packed), over all processes; "
        "accumulation follows from it.",
    ),
    "early_stopping_patience": Field(
        ("integer", "null"),
        at_least=1,
        help="Stop after this many evaluations without improvement. Null: never.",
    ),
}


@cache
def adapter_fields() -> dict[str, Field]:
    """LoraConfig's settings that a recipe may give, with our defaults, and `init_from`."""
    fields = library_fields("LoraConfig")
    ours = {name: fields[name] for name in fields if name not in ADAPTER_SET_BY_RUN}
    _adjust(ours, ADAPTER_DEFAULTS, _ADAPTER_BOUNDS)
    return {**ours, **section_fields(AdapterSection)}


@cache
def quantization_fields() -> dict[str, Field]:
    """BitsAndBytesConfig's settings."""
    return library_fields("BitsAndBytesConfig")


@cache
def train_fields() -> dict[str, Field]:
    """SFTConfig's settings with our defaults, additions, bounds and the few wider types."""
    fields = library_fields("SFTConfig")
    ours = {name: fields[name] for name in fields if name not in TRAIN_OWNED_ELSEWHERE}
    for name, (types, choices) in _TRAIN_WIDER.items():
        ours[name] = ours[name].widened(*types, choices=choices)
    ours |= TRAIN_ADDITIONS
    _adjust(ours, TRAIN_DEFAULTS, _TRAIN_BOUNDS)
    return ours


def _adjust(
    fields: dict[str, Field], defaults: dict[str, Any], bounds: dict[str, dict[str, Any]]
) -> None:
    """Put our defaults and bounds into the libraries' fields."""
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
_TRAIN_WIDER: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "per_device_train_batch_size": (("string",), ("auto",)),
    "activation_checkpointing": (("integer", "string"), ("auto",)),
    "gradient_checkpointing": (("integer", "string"), ("auto",)),
    "gradient_accumulation_steps": (("null",), ()),
    "optim": (("null",), ()),
}
