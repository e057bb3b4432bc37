"""Translation: the model writes a text in another language."""

from __future__ import annotations

from lora_sft.tasks.kind import (
    TaskKind,
    TaskRow,
    TaskSettings,
    UnusableRow,
    Values,
    read_accepted_texts,
    read_text,
)


def read_row(values: Values, settings: TaskSettings) -> TaskRow:
    """Return the source text and the accepted translations.

    They are in `source` and `target`, or in an object `translation` with one text per language.
    """
    pair = values.get("translation")
    if pair is None:
        source, answers = read_text(values, "source"), read_accepted_texts(values, "target")
    else:
        languages = settings.source_lang, settings.target_lang
        if not isinstance(pair, dict) or not all(language in pair for language in languages):
            raise UnusableRow(
                '"translation" must be an object with a text for task.source_lang '
                f"({languages[0]}) and task.target_lang ({languages[1]})"
            )
        source = read_text(pair, str(languages[0]))
        answers = read_accepted_texts(pair, str(languages[1]))
    return TaskRow({"source": source}, answers)


def write_answer(answer: str, settings: TaskSettings) -> str:
    """Return the translation."""
    return answer


def parse_answer(text: str, settings: TaskSettings) -> str:
    """Return the text without space around it."""
    return text.strip()


TRANSLATION = TaskKind(
    name="translation",
    columns=(("source", "translation"), ("target", "translation")),
    prompt="{% if target_lang %}Translate{% if source_lang %} from {{ source_lang }}{% endif %} "
    "to {{ target_lang }}:\n\n{% endif %}{{ source }}",
    metrics={"bleu": "translation", "chrf_pp": "translation"},
    shortened=("source",),
    read=read_row,
    write=write_answer,
    parse=parse_answer,
)
