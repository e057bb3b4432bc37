"""Summarization: the model writes a short version of a document."""

from __future__ import annotations

from lora_sft.tasks.kind import (
    TaskKind,
    TaskRow,
    TaskSettings,
    Values,
    read_accepted_texts,
    read_text,
)
from lora_sft.tasks.translation import parse_answer, write_answer


def read_row(values: Values, settings: TaskSettings) -> TaskRow:
    """Return the document and the accepted summaries."""
    document = read_text(values, "document")
    return TaskRow({"document": document}, read_accepted_texts(values, "summary"))


SUMMARIZATION = TaskKind(
    name="summarization",
    columns=(("document",), ("summary",)),
    prompt="Summarize this text:\n\n{{ document }}",
    metrics={
        "rougeL": "rouge",
        "rouge1": "rouge",
        "rouge2": "rouge",
        "rougeLsum": "rouge",
    },
    shortened=("document",),
    read=read_row,
    write=write_answer,
    parse=parse_answer,
)
