"""Score the answers of a task with the metrics of its kind."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_sft.log import say
from lora_sft.recipe import TaskSection
from lora_sft.tasks.kind import Answer, TaskKind

MOST_SHOWN = 8  # labels in a warning


@dataclass(frozen=True)
class TaskScores:
    """The scores of one model.

    Attributes:
        metrics: Each metric by name.
        unparseable: How many answers are no answer of the task. They count as wrong.
    """

    metrics: Mapping[str, float]
    unparseable: int


def collect_labels(
    kind: TaskKind, task: TaskSection, splits: Sequence[Iterable[str]]
) -> TaskSection:
    """Return the task with all its labels: those of the recipe, else those of the rows.

    Args:
        kind: The kind of task.
        task: The task of the recipe.
        splits: The column `expected` of the training split, then of other splits.
    """
    if kind.sort_labels is None or kind.read_label is None:
        return task
    if task.labels is not None:
        return replace(task, labels=[kind.read_label(label) for label in task.labels])
    by_split = [{label for text in set(each) for label in _list_labels(text)} for each in splits]
    new = sorted(set().union(*by_split[1:]) - by_split[0])
    if new:
        shown = ", ".join(new[:MOST_SHOWN])
        say(f"warning: {len(new)} labels occur in no training row: {shown}")
    return replace(task, labels=kind.sort_labels(set().union(*by_split)))


def _list_labels(expected: str) -> list[str]:
    [answer] = json.loads(expected)
    return answer if isinstance(answer, list) else [answer]


def score_texts(
    kind: TaskKind,
    task: TaskSection,
    metrics: Sequence[str],
    texts: Sequence[str],
    expected: Sequence[str],
) -> TaskScores:
    """Return the scores of the texts that a model wrote.

    Args:
        kind: The kind of task.
        task: The task with all its labels.
        metrics: The names of the metrics.
        texts: What the model wrote, without special tokens.
        expected: The accepted answers of each row, as JSON.
    """
    answers = [kind.parse(text, task) for text in texts]
    accepted = [json.loads(text) for text in expected]
    references = accepted if kind.has_several_references else [each[0] for each in accepted]
    scores = {name: _compute(kind, task, name, answers, references) for name in metrics}
    return TaskScores(scores, unparseable=sum(answer is None for answer in answers))


def _compute(
    kind: TaskKind,
    task: TaskSection,
    name: str,
    answers: Sequence[Answer | None],
    references: Sequence[Any],
) -> float:
    family = importlib.import_module(f"lora_sft.evaluate.metrics.{kind.list_metrics(task)[name]}")
    metric = getattr(family, name)
    wanted = inspect.signature(metric).parameters.keys()
    facts = {fact: getattr(task, fact) for fact in ("labels", "no_answer", "target_lang")}
    chosen = {fact: value for fact, value in facts.items() if fact in wanted}
    return float(metric(answers, references, **chosen))
