"""Rules about the section `task`, and about prompts."""

from __future__ import annotations

from collections.abc import Iterator

from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules.finding import Finding
from lora_sft.recipe.sections.data import DatasetSection
from lora_sft.recipe.sections.settings import section_fields
from lora_sft.recipe.sections.task import TaskSection

CLASSIFICATION = "text-classification"
# The settings that only one kind of task reads.
SETTINGS_OF_KINDS = {
    "labels": CLASSIFICATION,
    "multi_label": CLASSIFICATION,
    "label_separator": CLASSIFICATION,
    "label_columns": CLASSIFICATION,
    "none_label": CLASSIFICATION,
    "source_lang": "translation",
    "target_lang": "translation",
    "no_answer": "question-answering",
}
TASK_FORMATS = ("auto", "table", "squad")


def settings_belong_to_the_kind(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a setting that the kind of task does not read: it would have no effect."""
    if recipe.task is None:
        return
    fields = section_fields(TaskSection)
    for name, kind in SETTINGS_OF_KINDS.items():
        path = f"task.{name}"
        if recipe.task.kind != kind and getattr(recipe.task, name) != fields[name].default:
            what = f"{path} has no effect under task.kind: {recipe.task.kind}"
            yield Finding((path,), what, f"delete the line, or write task.kind: {kind}")


def label_columns_are_multi_label(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `label_columns` and `label_separator` for rows with one label each."""
    task = recipe.task
    if task is None or task.multi_label:
        return
    for name in ("label_columns", "label_separator"):
        if getattr(task, name) is not None:
            paths = (f"task.{name}", "task.multi_label")
            yield Finding(paths, f"task.{name} needs multi_label", "write task.multi_label: true")


def labels_are_different(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a list of labels in which one occurs twice, or with fewer than two labels."""
    labels = recipe.task.labels if recipe.task is not None else None
    if labels is None:
        return
    texts = [str(label) for label in labels]
    repeated = next((text for text in texts if texts.count(text) > 1), None)
    if repeated is not None:
        what = f'task.labels holds "{repeated}" more than once'
        yield Finding(("task.labels",), what, "write each label once")
    elif len(texts) < 2:
        what = f"task.labels has {len(texts)} labels; a classification needs at least two"
        yield Finding(("task.labels",), what, "delete the line to take the labels of the rows")


def prompts_have_an_answer(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a prompt without `assistant` where no task gives the answer."""
    for path, dataset in _list_datasets(recipe):
        prompt = dataset.prompt
        if prompt is None:
            continue
        if recipe.kind is None and prompt.assistant is None:
            what = f"{path}.prompt has no assistant, so nothing would be learned"
            fix = f'write {path}.prompt.assistant: "{{{{ answer }}}}", or set a task'
            yield Finding((f"{path}.prompt",), what, fix)
        if dataset.format != "auto" and recipe.kind is None:
            what = f"{path} has a prompt, which makes a conversation from any columns, and a format"
            yield Finding((f"{path}.format", f"{path}.prompt"), what, f"delete {path}.format")


def formats_fit_the_task(recipe: Recipe) -> Iterator[Finding]:
    """Refuse a format of chats under a task, and a format of tasks without one."""
    for path, dataset in _list_datasets(recipe):
        written = f"{path}.format"
        if recipe.kind is None and dataset.format in ("table", "squad"):
            what = f"{written}: {dataset.format} needs a task"
            yield Finding((written,), what, f"write task: {CLASSIFICATION}, or format: auto")
        elif recipe.kind is not None and dataset.format not in TASK_FORMATS:
            what = f"{written}: {dataset.format} holds chats, but the recipe has a task"
            yield Finding((written, "task"), what, f"write {written}: table")
        elif dataset.format == "squad" and recipe.kind and recipe.kind.name != "question-answering":
            what = f"{written}: squad holds questions"
            yield Finding((written, "task.kind"), what, "write task.kind: question-answering")


def only_tasks_shorten(recipe: Recipe) -> Iterator[Finding]:
    """Refuse `data.overlong: shorten` for chats: they have no input that may be cut."""
    if recipe.kind is None and recipe.data.overlong == "shorten":
        what = "data.overlong: shorten cuts the input of a task, but the recipe has no task"
        yield Finding(("data.overlong",), what, "write data.overlong: drop")


def _list_datasets(recipe: Recipe) -> Iterator[tuple[str, DatasetSection]]:
    lists = [("data.datasets", recipe.data.datasets)]
    for name in ("validation", "test"):
        split = getattr(recipe.data, name)
        lists += [(f"data.{name}.datasets", split.datasets)] if split and split.datasets else []
    for path, datasets in lists:
        for index, dataset in enumerate(datasets):
            yield f"{path}.{index}", dataset
