"""The section `data`, and the sections of its data sets and splits."""

# ruff: noqa: RUF009 (each call of `setting` makes a new dataclass field, not a shared default)
# No `from __future__ import annotations` here: `make_field` needs the annotations as types.
from dataclasses import dataclass
from typing import Any, Literal

from lora_sft.recipe.sections.settings import RecipeSection, location_field, setting
from lora_sft.recipe.sections.task import PromptSection

RowFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokenized", "table",
    "squad",
]  # fmt: skip


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
    prompt: PromptSection | None = setting(
        None, help="Make a conversation from the columns of each row. Only with `format: auto`."
    )
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
    overlong: Literal["drop", "keep_start", "split", "error", "shorten"] = setting(
        "drop",
        help="What to do with a row that is longer than max_length. Shorten (the default under a "
        "task): cut the longest input of the task until prompt and answer fit.",
    )
    packing: Literal["auto"] | bool = setting(
        "auto",
        help="Put several rows into one sequence of at most max_length tokens. Auto: on if the "
        "rows stay isolated from each other and at least 32 steps per epoch remain. "
        "True: an error if the rows do not stay isolated.",
    )
    chat_template_location: str = location_field()
