"""Read the questions of a SQuAD file, which nests them in paragraphs of articles.

Source: Rajpurkar et al. 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822), the JSON files of
versions 1.1 and 2.0. A file with one flat row per question is read as a table instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_sft.data.rows.data_files import READ_FAULTS, DataFile, make_read_error
from lora_sft.data.rows.file_rows import NumberedRow, refuse_empty
from lora_sft.data.rows.plain_json import parse_json
from lora_sft.errors import DataError


def read_squad(file: DataFile) -> Iterator[NumberedRow]:
    """Yield one row per question: `id`, `title`, `question`, `context`, `answers`, `is_impossible`.

    The whole file is in memory, because it is one JSON object.

    Raises: DataError if the file is not in the form of SQuAD.
    """
    document = _read_document(file)
    number = 0
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield None, _flatten(article, paragraph, question)
                    number += 1
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the file is not in the form of SQuAD: {type(error).__name__} {error}",
            f"{file.source} row {number}",
            "write {data: [{paragraphs: [{context, qas: [{question, answers}]}]}]}, or one row per "
            "question without format: squad",
        ) from error
    if number == 0:
        refuse_empty(file)


def _read_document(file: DataFile) -> Any:
    try:
        with file.open() as stream:
            return parse_json(stream.read().decode("utf-8-sig"))
    except (ValueError, *READ_FAULTS) as error:
        raise make_read_error(file, error) from error


def _flatten(article: Any, paragraph: Any, question: Any) -> dict[str, Any]:
    return {
        "id": question.get("id"),
        "title": article.get("title"),
        "question": question["question"],
        "context": paragraph["context"],
        "answers": question["answers"],
        "is_impossible": question.get("is_impossible", False),
    }
