"""Text classification: the model writes the label of a text, or several labels."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from lora_sft.tasks.kind import (
    ForbiddenRow,
    TaskKind,
    TaskRow,
    TaskSettings,
    UnusableRow,
    Values,
    read_text,
)

DEFAULT_SEPARATOR = ", "


def read_row(values: Values, settings: TaskSettings) -> TaskRow:
    """Return the text (and the second text of a pair), and the label or the list of labels."""
    inputs = {"text": read_text(values, "text")}
    if values.get("text_pair") not in (None, ""):
        inputs["text_pair"] = read_text(values, "text_pair")
    labels = _read_labels(values, settings)
    _check_known(labels, settings)
    if settings.multi_label:
        return TaskRow(inputs, (sort_labels(set(labels), settings.labels),))
    if len(labels) != 1:
        raise UnusableRow(
            f"the row has {len(labels)} labels; task.multi_label: true allows several"
        )
    return TaskRow(inputs, (labels[0],))


def _check_known(labels: Sequence[str], settings: TaskSettings) -> None:
    """Check that the recipe names each label, if it names labels at all.

    Raises: ForbiddenRow if it does not.
    """
    if settings.labels is None:
        return
    known = [read_label(label) for label in settings.labels]
    for label in labels:
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1)
            raise ForbiddenRow(
                f'the label "{label}" is not in task.labels',
                f'write "{near[0]}" in the row, or add the label to task.labels'
                if near
                else "add it to task.labels, or correct the row",
            )


def _read_labels(values: Values, settings: TaskSettings) -> list[str]:
    if settings.label_columns:
        return [column for column in settings.label_columns if _read_flag(values, column)]
    value = values.get("label")
    if settings.multi_label:
        return [read_label(each) for each in _split_labels(value, settings.label_separator)]
    if value is None or value == "":
        raise UnusableRow("the row has no label", reason="unlabelled")
    return [read_label(each) for each in (value if isinstance(value, list) else [value])]


def _split_labels(value: Any, separator: str | None) -> list[Any]:
    """Return the labels of a row: a list, a JSON list in a text, or texts between separators."""
    if value is None or value == "":
        return []
    if not isinstance(value, str):
        return value if isinstance(value, list) else [value]
    if value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list):
            return found
    parts = value.split(separator.strip() or separator) if separator else [value]
    return [part.strip() for part in parts if part.strip()]


def read_label(value: Any) -> str:
    """Return the text of a label. A whole number is written without a decimal point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise UnusableRow(f"a label must be a text or a number, not {value!r}")


def _read_flag(values: Values, column: str) -> bool:
    value = values.get(column)
    if isinstance(value, str):
        value = {"0": 0, "1": 1, "true": 1, "false": 0}.get(value.strip().lower(), value)
    if value not in (0, 1):
        raise UnusableRow(f'"{column}" must be 0 or 1, not {value!r}')
    return bool(value)


def sort_labels(
    labels: Iterable[str], order: Sequence[str | int | float] | None = None
) -> list[str]:
    """Return labels in the order of the recipe; without one, numbers as numbers, then texts."""
    if order is not None:
        places = {read_label(label): place for place, label in enumerate(order)}
        return sorted(labels, key=lambda label: (places.get(label, len(places)), label))
    return sorted(labels, key=_make_sort_key)


def _make_sort_key(label: str) -> tuple[int, float, str]:
    try:
        number = float(label)
    except ValueError:
        return (1, 0.0, label)
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)


def write_answer(answer: Any, settings: TaskSettings) -> str:
    """Return the label, or all labels with the separator between them."""
    if not settings.multi_label:
        return str(answer)
    return _find_separator(settings).join(answer) or settings.none_label


def parse_answer(text: str, settings: TaskSettings) -> Any:
    """Return the label in a text, or the list of labels; None if a label is unknown."""
    known = {read_label(label) for label in settings.labels or ()}
    if not settings.multi_label:
        label = text.strip()
        return label if label in known else None
    if text.strip() == settings.none_label:
        return []
    separator = _find_separator(settings)
    found = [part.strip() for part in text.split(separator.strip() or separator)]
    return sort_labels(set(found), settings.labels) if set(found) <= known else None


def _find_separator(settings: TaskSettings) -> str:
    return settings.label_separator or DEFAULT_SEPARATOR


TEXT_CLASSIFICATION = TaskKind(
    name="text-classification",
    columns=(("text",), ("label",)),
    prompt="{{ text }}{% if text_pair %}\n\n{{ text_pair }}{% endif %}",
    metrics=dict.fromkeys(
        (
            *("accuracy", "f1_macro", "f1_micro", "f1_weighted"),
            *("precision_macro", "recall_macro", "mcc"),
        ),
        "classification",
    ),
    shortened=("text", "text_pair"),
    read=read_row,
    write=write_answer,
    parse=parse_answer,
    read_label=read_label,
    sort_labels=sort_labels,
    has_several_references=False,
    multi_label_metrics=dict.fromkeys(
        (
            *("f1_micro", "f1_macro", "f1_weighted", "precision_macro", "recall_macro"),
            *("f1_samples", "subset_accuracy"),
        ),
        "classification",
    ),
)
