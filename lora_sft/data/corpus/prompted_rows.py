"""Turn the rows of a task, or rows with a prompt in the recipe, into conversations.

The user's turn comes from the prompt, and the assistant's turn is the answer that the kind of task
writes. So the label rule for conversations decides what is learned, as for every other chat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2

from lora_sft.data.drops import MalformedRow, RowDropped
from lora_sft.data.examples.conversation import Conversation, Message
from lora_sft.data.examples.row_formats import RowFormat
from lora_sft.data.rows.data_files import name_source
from lora_sft.data.templates.render_budget import RECIPE_PROMPT, TemplateOverBudget
from lora_sft.data.templates.template_environment import compile_prompt
from lora_sft.errors import DataError
from lora_sft.tasks.kind import TaskKind, TaskRow, UnusableRow, Values
from lora_sft.tasks.table import KINDS

if TYPE_CHECKING:
    from lora_sft.recipe import DatasetSection, PromptSection, TaskSection

PROMPT_FORMAT = "prompt"  # the name in messages of rows that only have a prompt


@dataclass(frozen=True)
class Prompt:
    """The compiled texts of a prompt; None for a turn that it does not have."""

    user: jinja2.Template
    system: jinja2.Template | None
    assistant: jinja2.Template | None


def find_prompted_format(dataset: DatasetSection, task: TaskSection | None) -> RowFormat | None:
    """Return the format of a data set whose rows get a prompt; None for rows that are chats.

    Raises: DataError if a prompt is not a valid template.
    """
    kind = KINDS.get(task.kind) if task is not None else None
    if kind is None:
        if dataset.prompt is None:
            return None
        prompt = _compile(dataset.prompt, f"{name_source(dataset.path)}  prompt")
        return RowFormat(PROMPT_FORMAT, (), lambda values: _make_chat(prompt, values))
    assert task is not None
    reader = TaskRowReader(kind, task, _find_prompt(dataset, task, kind))
    columns = () if task.label_columns else kind.columns
    return RowFormat(kind.name, columns, reader.read)


def _find_prompt(dataset: DatasetSection, task: TaskSection, kind: TaskKind) -> Prompt:
    """Return the prompt of the data set, else that of the task, else that of the kind."""
    if dataset.prompt is not None:
        return _compile(dataset.prompt, f"{name_source(dataset.path)}  prompt")
    if isinstance(task.prompt, str):
        return Prompt(_compile_text(task.prompt, "task.prompt"), None, None)
    if task.prompt is not None:
        return _compile(task.prompt, "task.prompt")
    return Prompt(_compile_text(kind.prompt, kind.name), None, None)


def _compile(section: PromptSection, where: str) -> Prompt:
    texts = (section.system, section.assistant)
    system, assistant = (text if text is None else _compile_text(text, where) for text in texts)
    return Prompt(_compile_text(section.user, where), system, assistant)


def _compile_text(text: str, where: str) -> jinja2.Template:
    try:
        return compile_prompt(text)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"the prompt is not a valid template: {error.message} (its line {error.lineno})",
            where,
            "correct the template; a column is written as {{ column }}",
        ) from error


def _make_chat(prompt: Prompt, values: Values) -> Conversation:
    """Return the conversation of a row without a task: its prompt names the answer."""
    assert prompt.assistant is not None, "a rule of the recipe checks it"
    return _make_conversation(prompt, values, _render(prompt.assistant, values))


def _make_conversation(prompt: Prompt, values: Values, answer: str) -> Conversation:
    messages = [Message("user", _render(prompt.user, values)), Message("assistant", answer)]
    if prompt.system is not None:
        messages.insert(0, Message("system", _render(prompt.system, values)))
    return Conversation(tuple(messages))


def _render(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    try:
        return template.render(values)
    except TemplateOverBudget as error:
        raise error.at(RECIPE_PROMPT) from None
    except jinja2.UndefinedError as error:
        raise MalformedRow(f"the prompt names a column that the row lacks: {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise RowDropped("template_refused", str(error)) from error


class TaskRowReader:
    """A reader that turns rows of one data set into conversations of a task."""

    def __init__(self, kind: TaskKind, task: TaskSection, prompt: Prompt) -> None:
        self._kind = kind
        self._task = task
        self._prompt = prompt

    def read(self, values: Values) -> Conversation:
        """Return the conversation of a row, with its accepted answers.

        Raises: RowDropped if the kind cannot use the row.
        """
        try:
            row = self._kind.read(values, self._task)
        except UnusableRow as error:
            raise RowDropped(error.reason, str(error)) from error
        return self._make_conversation(values, row)

    def _make_conversation(self, values: Values, row: TaskRow) -> Conversation:
        learned = row.answers[0] if row.answers else None
        shown = {
            "source_lang": self._task.source_lang,
            "target_lang": self._task.target_lang,
            "labels": self._task.labels,
            "text_pair": None,
            **values,
            **row.inputs,
        }
        answer = self._kind.write(learned, self._task)
        if self._prompt.assistant is not None:
            answer = _render(self._prompt.assistant, shown)
        conversation = _make_conversation(self._prompt, shown, answer)
        return replace(
            conversation,
            expected=json.dumps(row.answers),
            shorten=self._make_shortener(values, row),
        )

    def _make_shortener(self, values: Values, row: TaskRow) -> Callable[[float], Conversation]:
        """Return a function that makes the conversation with a shorter input."""

        def shorten(share: float) -> Conversation:
            name = max(self._kind.shortened, key=lambda each: len(row.inputs.get(each, "")))
            text = row.inputs[name]
            kept = text[: int(len(text) * share)]
            return self._make_conversation(values, replace(row, inputs={**row.inputs, name: kept}))

        return shorten
