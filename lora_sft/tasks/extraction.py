"""Extraction: the model writes a JSON object with the facts of a text."""

from __future__ import annotations

import json
from typing import Any

from lora_sft.tasks.kind import TaskKind, TaskRow, TaskSettings, UnusableRow, Values, read_text


def read_row(values: Values, settings: TaskSettings) -> TaskRow:
    """Return the text, and the JSON value that it holds."""
    return TaskRow({"text": read_text(values, "text")}, (_read_json(values.get("json")),))


def _read_json(value: Any) -> Any:
    if value is None:
        raise UnusableRow('"json" is missing')
    try:
        text = value if isinstance(value, str) else json.dumps(value)
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise UnusableRow(f'"json" is not valid JSON: {error}') from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def write_answer(answer: Any, settings: TaskSettings) -> str:
    """Return the JSON value on one line, with its keys in the order of the row."""
    return json.dumps(answer, ensure_ascii=False)


def parse_answer(text: str, settings: TaskSettings) -> Any:
    """Return the JSON value in a text; None if the text is not JSON, and also for `null`."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


EXTRACTION = TaskKind(
    name="extraction",
    columns=(("text",), ("json",)),
    prompt="{{ text }}",
    metrics={
        "exact_match": "extraction",
        "valid_json": "extraction",
        "field_accuracy": "extraction",
        "field_precision": "extraction",
        "field_recall": "extraction",
    },
    shortened=("text",),
    read=read_row,
    write=write_answer,
    parse=parse_answer,
    has_several_references=False,
)
