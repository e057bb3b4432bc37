"""The sections about the task and its prompt."""

# ruff: noqa: RUF009 (each call of `setting` makes a new dataclass field, not a shared default)
# No `from __future__ import annotations` here: `make_field` needs the annotations as types.
from dataclasses import dataclass
from typing import Any, Literal

from lora_sft.recipe.sections.settings import RecipeSection, setting

TaskName = Literal[
    "chat", "text-classification", "question-answering", "translation", "summarization",
    "extraction",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PromptSection(RecipeSection):
    """The turns of a conversation, as Jinja texts over the columns of a row."""

    user: str = setting(example="Classify: {{ text }}", help="The user's turn.")
    system: str | None = setting(None, help="The system message. Null: none.")
    assistant: str | None = setting(
        None,
        example="{{ category }}",
        help="The answer. Null: under a task, the task's own answer.",
    )


@dataclass(frozen=True, kw_only=True)
class TaskSection(RecipeSection):
    """The task. `task: KIND` is short for `task: {kind: KIND}`. Null: the rows are chats."""

    kind: TaskName = setting(example="text-classification", help="The kind of task.")
    form: Literal["auto", "generate"] = setting(
        "auto", help="How the model answers. Generate: it writes the answer. Auto: generate."
    )
    labels: list[Any] | None = setting(
        None,
        help="All labels, in their order. Null: those of the rows, sorted (numbers as numbers).",
    )
    prompt: PromptSection | str | None = setting(
        None,
        help="The prompt, or only the user's turn, as Jinja over the columns of a row. Null: the "
        "prompt of the kind. The `prompt` of a data set has priority.",
    )
    multi_label: bool = setting(False, help="A row may have several labels, or none.")
    label_separator: str | None = setting(
        None,
        help="The text between several labels in one cell, and between the labels that the model "
        'writes. Null: a cell is not split, and the model writes ", ".',
    )
    label_columns: list[str] | None = setting(
        None, help="The columns that hold 0 or 1, one for each label. Only with `multi_label`."
    )
    none_label: str = setting("none", help="The text for a row without labels.")
    source_lang: str | None = setting(None, help="The language of the source text.")
    target_lang: str | None = setting(
        None, help="The language of the translation. It also chooses the tokenizer of BLEU."
    )
    no_answer: str = setting("unanswerable", help="The text for a question without an answer.")
