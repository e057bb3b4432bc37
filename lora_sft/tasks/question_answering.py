"""Question answering: the model writes the words of a context that answer a question."""

from __future__ import annotations

import json
from typing import Any

from lora_sft.tasks.kind import TaskKind, TaskRow, TaskSettings, UnusableRow, Values, read_text


def read_row(values: Values, settings: TaskSettings) -> TaskRow:
    """Return question and context, and the accepted answers in the order of the row."""
    inputs = {name: read_text(values, name) for name in ("question", "context")}
    if values.get("is_impossible") is True:
        return TaskRow(inputs, ())
    answers = _read_answers(values.get("answers"))
    for text, start in answers:
        _check_place(inputs["context"], text, start)
    return TaskRow(inputs, tuple(dict.fromkeys(text for text, _ in answers)))


def _read_answers(value: Any) -> list[tuple[str, int | None]]:
    """Return each answer with its place in the context, if the row has one.

    `answers` is SQuAD's object of two lists, a list of objects, a list of texts, or one text. A
    table without nested columns holds it as JSON text.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnusableRow('"answers" is not valid JSON') from error
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts = value["text"]
        starts = value.get("answer_start") or [None] * len(texts)
        if len(starts) != len(texts):
            raise UnusableRow('"answers" has another number of texts than of places')
        pairs = list(zip(texts, starts, strict=True))
    else:
        if value is None:
            raise UnusableRow('"answers" is missing')
        items = value if isinstance(value, list) else [value]
        pairs = [_read_item(item) for item in items]
    if not all(isinstance(text, str) and text.strip() for text, _ in pairs):
        raise UnusableRow('"answers" has an answer that is empty or not a text')
    return pairs


def _read_item(item: Any) -> tuple[Any, Any]:
    return (item.get("text"), item.get("answer_start")) if isinstance(item, dict) else (item, None)


def _check_place(context: str, text: str, start: int | None) -> None:
    if start is None:
        return
    if not isinstance(start, int) or context[start : start + len(text)] != text:
        raise UnusableRow(f'the context does not have "{text[:60]}" at answer_start {start}')


def write_answer(answer: str | None, settings: TaskSettings) -> str:
    """Return the answer, or the recipe's text for a question without an answer."""
    return settings.no_answer if answer is None else answer


def parse_answer(text: str, settings: TaskSettings) -> str:
    """Return the answer without space around it; empty if it is the text for no answer."""
    found = text.strip()
    return "" if found == settings.no_answer else found


QUESTION_ANSWERING = TaskKind(
    name="question-answering",
    columns=(("question",), ("context",), ("answers", "is_impossible")),
    prompt="{{ context }}\n\n{{ question }}",
    metrics={"f1": "squad", "exact_match": "squad"},
    shortened=("context",),
    read=read_row,
    write=write_answer,
    parse=parse_answer,
)
