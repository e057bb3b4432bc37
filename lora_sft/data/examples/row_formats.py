"""The formats a source row can be written in: how each is recognised and how it is read.

A new format is one function and one entry in `FORMATS` (and its name in `RowFormat` of the
recipe's schema): the function takes a source row's values and returns an example or raises
`MalformedRow`; `needs` names the columns that must be there, each with its accepted spellings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.examples.conversation import (
    Conversation,
    Example,
    Message,
    PlainText,
    PromptCompletion,
)
from lora_sft.data.examples.messages import read_messages, read_tools
from lora_sft.data.examples.tokenized_rows import read_tokenized_row
from lora_sft.data.one_line import make_one_line
from lora_sft.data.rows.plain_json import check_is_json_value, parse_if_string, parse_json
from lora_sft.errors import DataError

KWARGS_COLUMN = "chat_template_kwargs"
# What a template is given of the source row itself: an argument of that name would be lost.
NOT_KWARGS = ("messages", "tools", "add_generation_prompt")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class RowFormat:
    """A format: the columns it needs, any spelling of each, and what reads a source row by it."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Values], Example]

    def describe_needs(self) -> str:
        """The needed columns for a person to read, as in `instruction, output|response`."""
        return ", ".join("|".join(spellings) for spellings in self.needs)

    def fits(self, columns: set[str]) -> bool:
        """Whether every needed column is among `columns`."""
        return all(any(name in columns for name in spellings) for spellings in self.needs)


def read_openai_row(values: Values) -> Conversation:
    """`messages` with `role` and `content`, and `tools` beside them."""
    return _as_conversation(read_messages(values.get("messages"), "messages"), values)


def read_sharegpt_row(values: Values) -> Conversation:
    """`conversations` (or `messages`) with `from` and `value`; `system` may be its own column."""
    column = "conversations" if values.get("conversations") is not None else "messages"
    messages = read_messages(values.get(column), column, sharegpt=True)
    system = _read_optional_text(values, "system")
    return _as_conversation(_with_system(messages, system), values)


def read_alpaca_row(values: Values) -> Conversation:
    """`instruction` and `input` make the question, `output` or `response` the answer."""
    instruction = _read_text(values, "instruction")
    context = _read_optional_text(values, "input")
    question = f"{instruction}\n\n{context}" if context else instruction
    answer_columns = [name for name in ("output", "response") if values.get(name) is not None]
    filled = (name for name in answer_columns if values[name] != "")
    answer = _read_text(values, next(filled, next(iter(answer_columns), "output")))
    turns = [*_read_history(values.get("history")), question, answer]
    messages = tuple(
        Message("assistant" if index % 2 else "user", text) for index, text in enumerate(turns)
    )
    system = _read_optional_text(values, "system")
    return _as_conversation(_with_system(messages, system), values)


def read_prompt_completion_row(values: Values) -> PromptCompletion | Conversation:
    """`prompt` and `completion`, both texts or both lists of messages."""
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        context = read_messages(prompt, "prompt")
        answer = read_messages(completion, "completion")
        return _as_conversation(context + answer, values, completion_start=len(context))
    return PromptCompletion(_read_text(values, "prompt"), _read_text(values, "completion"))


def read_text_row(values: Values) -> PlainText:
    """One text in `text`."""
    return PlainText(_read_text(values, "text"))


FORMATS: dict[str, RowFormat] = {
    row_format.name: row_format
    for row_format in (
        RowFormat("messages", (("messages",),), read_openai_row),
        RowFormat("sharegpt", (("conversations", "messages"),), read_sharegpt_row),
        RowFormat("alpaca", (("instruction",), ("output", "response")), read_alpaca_row),
        RowFormat("prompt_completion", (("prompt",), ("completion",)), read_prompt_completion_row),
        RowFormat("text", (("text",),), read_text_row),
        RowFormat("tokenized", (("input_ids",),), read_tokenized_row),
    )
}


def find_row_format(name: str, first_rows: Iterable[Values], where: str) -> RowFormat:
    """The format called `name`, or for `auto` the one that the first rows' columns fit: those
    that a row fills, as a table has a column in every row that one row needs.

    Raises: DataError where none or several fit; it lists the columns and what each format needs.
    """
    rows = list(first_rows)
    columns = {column for row in rows for column in row}
    if name != "auto":
        return _check_columns(_named_format(name, where), columns, where)
    filled = {column for row in rows for column, value in row.items() if value is not None}
    fitting = _list_fitting(filled, rows) or _list_fitting(columns, rows)
    if len(fitting) != 1:
        raise _undecided(columns, fitting, where)
    return fitting[0]


def _list_fitting(columns: set[str], rows: list[Values]) -> list[RowFormat]:
    fitting = [row_format for row_format in FORMATS.values() if row_format.fits(columns)]
    return [row_format for row_format in fitting if _spelling_fits(row_format, rows)]


def _named_format(name: str, where: str) -> RowFormat:
    if name not in FORMATS:
        names = ", ".join(FORMATS)
        raise DataError(f'there is no row format "{name}"', f"{where}  format", f"one of: {names}")
    return FORMATS[name]


def _check_columns(row_format: RowFormat, columns: set[str], where: str) -> RowFormat:
    if not row_format.fits(columns):
        raise DataError(
            f"format {row_format.name} needs the columns {row_format.describe_needs()}; "
            f"the rows have {_list_columns(columns)}",
            where,
            "name them with rename_columns: {theirs: ours}, or choose another format",
        )
    return row_format


def _spelling_fits(row_format: RowFormat, rows: list[Values]) -> bool:
    """`messages` is a column of two formats: `from` in a message decides for ShareGPT."""
    if row_format.name not in ("messages", "sharegpt"):
        return True
    if any(row.get("conversations") is not None for row in rows):
        return row_format.name == "sharegpt" or not _has_sharegpt_messages(rows)
    return (row_format.name == "sharegpt") == _has_sharegpt_messages(rows)


def _has_sharegpt_messages(rows: list[Values]) -> bool:
    written = [_parse_if_json(row.get("messages")) for row in rows]
    lists = [messages for messages in written if isinstance(messages, list)]
    firsts = [messages[0] for messages in lists if messages and isinstance(messages[0], Mapping)]
    return any("from" in first and "role" not in first for first in firsts)


def _parse_if_json(value: Any) -> Any:
    """What a text holds as JSON, a CSV's way to write a list; what is none stays a text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value


def _undecided(columns: set[str], fitting: list[RowFormat], where: str) -> DataError:
    found = _list_columns(columns)
    if fitting:
        names = [row_format.name for row_format in fitting]
        what = f"the columns {found} fit more than one format: {', '.join(names)}"
        return DataError(what, where, f"write format: {names[0]} (or {', '.join(names[1:])})")
    needs = "; ".join(f"{form.name}: {form.describe_needs()}" for form in FORMATS.values())
    return DataError(
        f"no row format fits the columns {found} (needed: {needs})",
        where,
        "name them with rename_columns: {theirs: ours}",
    )


def _list_columns(columns: set[str]) -> str:
    return make_one_line(", ".join(sorted(columns))) or "(none)"


def _as_conversation(
    messages: tuple[Message, ...], values: Values, completion_start: int | None = None
) -> Conversation:
    written = values.get(KWARGS_COLUMN)
    kwargs = parse_if_string(written, KWARGS_COLUMN)
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise MalformedRow(f"{KWARGS_COLUMN} is not an object")
    check_is_json_value(kwargs, KWARGS_COLUMN)
    taken = next((name for name in NOT_KWARGS if name in (kwargs or {})), None)
    if taken is not None:
        raise MalformedRow(f"{KWARGS_COLUMN} sets {taken}, which is no template argument")
    tools = read_tools(values.get("tools"))
    return Conversation(messages, tools, dict(kwargs or {}), completion_start)


def _with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    return (Message("system", system), *messages) if system else messages


def _read_history(value: Any) -> list[str]:
    """Earlier turns as `[[question, answer], ...]`, flattened; a CSV has them as a JSON text."""
    value = parse_if_string(value, "history")
    if not value:
        return []
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise MalformedRow("history is not a list of [question, answer] pairs")
    turns = [turn for pair in pairs for turn in pair]
    if not all(isinstance(turn, str) for turn in turns):
        raise MalformedRow("history holds something that is not text")
    return turns


def _read_text(values: Values, column: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}, not text"
        raise MalformedRow(f'"{column}" is {kind}')
    return value


def _read_optional_text(values: Values, column: str) -> str:
    return "" if values.get(column) is None else _read_text(values, column)
