"""The formats of source rows: how each is recognised and read.

To add a format, write a function, an entry in `FORMATS`, and its name in `RowFormat` of the
recipe's schema. The function takes the values of a source row. It returns an example, or raises
`MalformedRow`.
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
from lora_sft.data.rows.plain_json import check_is_json_value, parse_if_string, parse_json
from lora_sft.errors import DataError
from lora_sft.shown_text import make_one_line

KWARGS_COLUMN = "chat_template_kwargs"
# Template arguments that are always set from other data. A row cannot set them.
RESERVED_KWARGS = ("messages", "tools", "add_generation_prompt")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class RowFormat:
    """One format of source rows.

    Attributes:
        needs: The names that each needed column may have: one tuple per column.
        read: Turns the values of a source row into an example.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Values], Example]

    def describe_needs(self) -> str:
        """Return the needed columns for an error, such as `instruction, output|response`."""
        return ", ".join("|".join(spellings) for spellings in self.needs)

    def fits(self, columns: set[str]) -> bool:
        """Return whether `columns` holds every needed column."""
        return all(any(name in columns for name in spellings) for spellings in self.needs)


def read_openai_row(values: Values) -> Conversation:
    """Read `messages` with `role` and `content`, and the optional column `tools`."""
    return _as_conversation(read_messages(values.get("messages"), "messages"), values)


def read_sharegpt_row(values: Values) -> Conversation:
    """Read `conversations` or `messages` with `from` and `value`, and the optional `system`."""
    column = "conversations" if values.get("conversations") is not None else "messages"
    messages = read_messages(values.get(column), column, sharegpt=True)
    system = _read_optional_text(values, "system")
    return _as_conversation(_with_system(messages, system), values)


def read_alpaca_row(values: Values) -> Conversation:
    """Read the question from `instruction` and `input`, the answer from `output` or `response`."""
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
    """Read `prompt` and `completion`: two texts, or two lists of messages."""
    prompt, completion = values.get("prompt"), values.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        context = read_messages(prompt, "prompt")
        answer = read_messages(completion, "completion")
        return _as_conversation(context + answer, values, completion_start=len(context))
    return PromptCompletion(_read_text(values, "prompt"), _read_text(values, "completion"))


def read_text_row(values: Values) -> PlainText:
    """Read the text in `text`."""
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
    """Return the format called `name`; for `auto`, the only format that fits the first rows.

    A table has every column in every row. For `auto`, columns that are null in all first rows are
    therefore ignored, unless no format fits without them.

    Raises: DataError, with the columns and the needs of each format, if not exactly one fits.
    """
    rows = list(first_rows)
    columns = {column for row in rows for column in row}
    if name != "auto":
        return _check_columns(_named_format(name, where), columns, where)
    filled = {column for row in rows for column, value in row.items() if value is not None}
    fitting = _list_fitting(filled, rows) or _list_fitting(columns, rows)
    if len(fitting) != 1:
        raise _make_undecided_error(columns, fitting, where)
    return fitting[0]


def _list_fitting(columns: set[str], rows: list[Values]) -> list[RowFormat]:
    fitting = [row_format for row_format in FORMATS.values() if row_format.fits(columns)]
    return [row_format for row_format in fitting if _spelling_fits(row_format, rows)]


def _named_format(name: str, where: str) -> RowFormat:
    if name not in FORMATS:
        names = ", ".join(FORMATS)
        raise DataError(
            f'there is no row format "{name}"', f"{where}  format", f"write one of: {names}"
        )
    return FORMATS[name]


def _check_columns(row_format: RowFormat, columns: set[str], where: str) -> RowFormat:
    if not row_format.fits(columns):
        raise DataError(
            f"format {row_format.name} needs the columns {row_format.describe_needs()}; "
            f"the rows have {_list_columns(columns)}",
            where,
            "rename columns with rename_columns: {old name: new name}, or choose another format",
        )
    return row_format


def _spelling_fits(row_format: RowFormat, rows: list[Values]) -> bool:
    """Return whether the messages have the keys of this format (`role`, or ShareGPT's `from`).

    Two formats have a column `messages`. A message with `from` is in ShareGPT's format.
    """
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
    """Return the JSON value of a string (CSV holds lists as strings), or the string itself."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value


def _make_undecided_error(columns: set[str], fitting: list[RowFormat], where: str) -> DataError:
    found = _list_columns(columns)
    if fitting:
        names = [row_format.name for row_format in fitting]
        what = f"the columns {found} fit more than one format: {', '.join(names)}"
        return DataError(what, where, f"write format: {names[0]} (or {', '.join(names[1:])})")
    needs = "; ".join(f"{form.name}: {form.describe_needs()}" for form in FORMATS.values())
    return DataError(
        f"no row format fits the columns {found} (needed: {needs})",
        where,
        "rename columns with rename_columns: {old name: new name}",
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
    taken = next((name for name in RESERVED_KWARGS if name in (kwargs or {})), None)
    if taken is not None:
        raise MalformedRow(f"{KWARGS_COLUMN} sets {taken}, which a row cannot set there")
    tools = read_tools(values.get("tools"))
    return Conversation(messages, tools, dict(kwargs or {}), completion_start)


def _with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    return (Message("system", system), *messages) if system else messages


def _read_history(value: Any) -> list[str]:
    """Return the earlier turns as a flat list.

    The column holds `[[question, answer], ...]`. In a CSV file this is a JSON string.
    """
    value = parse_if_string(value, "history")
    if not value:
        return []
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise MalformedRow("history is not a list of [question, answer] pairs")
    turns = [turn for pair in pairs for turn in pair]
    if not all(isinstance(turn, str) for turn in turns):
        raise MalformedRow("history holds a turn that is not text")
    return turns


def _read_text(values: Values, column: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        kind = "missing" if value is None else f"of the type {type(value).__name__}, not text"
        raise MalformedRow(f'"{column}" is {kind}')
    return value


def _read_optional_text(values: Values, column: str) -> str:
    return "" if values.get(column) is None else _read_text(values, column)
