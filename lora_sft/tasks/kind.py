"""What a kind of task is: which columns its rows have, what the model writes, and how it is scored.

A kind is one entry in `table.py` and one file in this folder. Every stage reads the kind's record:
the data stage reads inputs and accepted answers from a row, and writes the prompt and the text that
the model learns. Evaluation reads the answer out of the text that the model wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Values = Mapping[str, Any]
Answer = Any  # a label, a list of labels, a text, or a JSON value


class TaskSettings(Protocol):
    """The settings of the recipe's section `task` that kinds read."""

    @property
    def labels(self) -> Sequence[str | int | float] | None: ...
    @property
    def multi_label(self) -> bool: ...
    @property
    def label_separator(self) -> str | None: ...
    @property
    def label_columns(self) -> Sequence[str] | None: ...
    @property
    def none_label(self) -> str: ...
    @property
    def source_lang(self) -> str | None: ...
    @property
    def target_lang(self) -> str | None: ...
    @property
    def no_answer(self) -> str: ...


class UnusableRow(ValueError):
    """A row that the kind cannot use.

    Attributes:
        reason: The reason for which the row is counted as dropped.
    """

    def __init__(self, detail: str, reason: str = "malformed") -> None:
        self.reason = reason
        super().__init__(detail)


class ForbiddenRow(ValueError):
    """A row that contradicts the recipe. It is not dropped: the command stops.

    Attributes:
        fix: What the user can do.
    """

    def __init__(self, what: str, fix: str) -> None:
        self.fix = fix
        super().__init__(what)


@dataclass(frozen=True)
class TaskRow:
    """What a kind reads from a row.

    Attributes:
        inputs: The texts of the row by the kind's own names. The prompt can name them.
        answers: The accepted answers. The first is learned. Empty if the context of a question does
            not answer it.
    """

    inputs: Mapping[str, str]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class TaskKind:
    """One kind of task.

    Attributes:
        name: The name in the recipe.
        columns: The needed columns; each may have one of several names.
        prompt: The user's turn, as a Jinja text over the inputs and the columns of the row.
        metrics: The metrics by name, each with its family: a file of `evaluate/metrics`. The first
            one is the main metric.
        multi_label_metrics: The same for rows with several labels.
        shortened: The inputs that may be cut if a row is too long. The longest is cut.
        read: Returns the inputs and the accepted answers of a row, or raises `UnusableRow` or
            `ForbiddenRow`.
        write: Returns the text that the model learns for an answer.
        parse: Returns the answer in a text that the model wrote; None if it has none.
        read_label: Returns the text of a label; None if the answers are not labels.
        sort_labels: Returns labels in their order; None if the answers are not labels.
        has_several_references: Whether a row may have several accepted answers, or none.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    prompt: str
    metrics: Mapping[str, str]
    shortened: tuple[str, ...]
    read: Callable[[Values, TaskSettings], TaskRow]
    write: Callable[[Answer, TaskSettings], str]
    parse: Callable[[str, TaskSettings], Answer | None]
    read_label: Callable[[Any], str] | None = None
    sort_labels: Callable[[Iterable[str]], list[str]] | None = None
    has_several_references: bool = True
    multi_label_metrics: Mapping[str, str] = field(default_factory=dict)

    def list_metrics(self, settings: TaskSettings) -> Mapping[str, str]:
        """Return the metrics that fit the settings, with their families. The first is the main."""
        return self.multi_label_metrics if settings.multi_label else self.metrics


def read_text(values: Values, column: str) -> str:
    """Return the text of a column. A list of texts is joined by spaces.

    Raises: UnusableRow if it is missing, empty, or neither a text nor a list of texts.
    """
    value = values.get(column)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        kind = "missing" if value is None else f"of the type {type(value).__name__}, not text"
        raise UnusableRow(f'"{column}" is {kind}')
    if not value.strip():
        raise UnusableRow(f'"{column}" is empty')
    return value


def read_accepted_texts(values: Values, column: str) -> tuple[str, ...]:
    """Return the accepted answers in a column: one text, or a list of texts.

    Raises: UnusableRow if there is none, or if one of them is empty or no text.
    """
    value = values.get(column)
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise UnusableRow(f'"{column}" is an empty list')
    for text in texts:
        if not isinstance(text, str):
            kind = "missing" if text is None else f"of the type {type(text).__name__}, not text"
            raise UnusableRow(f'"{column}" is {kind}')
        if not text.strip():
            raise UnusableRow(f'"{column}" is empty')
    return tuple(texts)
