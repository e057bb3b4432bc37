"""What settings must hold together: one small function a rule, in one flat tuple.

A rule reads the resolved recipe and yields what it finds; it never repairs. Bounds and types of
single settings belong to the schema. To add a rule, write the function, put it into `RULES`,
and give it a case in the tests, which check that every rule was hit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lora_sft.errors import Fault
from lora_sft.recipe.deepspeed_rules import DEEPSPEED_RULES
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.finding import Finding, Rule
from lora_sft.recipe.locations import is_hub_id, is_local
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.schema import DatasetSection, SplitSection, train_fields
from lora_sft.recipe.written import Origin

BEST_METRICS = ("loss", "eval_loss")
EVALUATE_METRICS = ("exact_match",)
LOAD_DATASET_BUILDERS = frozenset(("json", "csv", "parquet", "arrow", "text"))
CONVERSATION_FORMATS = frozenset(("messages", "sharegpt"))
_COMMIT_OR_TAG = re.compile(r"(?!main$|master$).+")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


def find_rule_faults(recipe: Recipe, faults: FaultList) -> None:
    """Add what the rules find, except about paths that already have a fault."""
    for rule in RULES:
        for finding in rule(recipe):
            if not any(faults.touches_taint(path) for path in finding.paths):
                faults.add_at(_make_fault(recipe, finding), _place_of(recipe, finding))


def _make_fault(recipe: Recipe, finding: Finding) -> Fault:
    written = [path for path in finding.paths if recipe.is_written(path)]
    where = ", ".join(recipe.where(path) for path in written or finding.paths[:1])
    return Fault(finding.what, where, finding.fix)


def _place_of(recipe: Recipe, finding: Finding) -> Origin:
    for path in finding.paths:
        if path in recipe.places:
            return recipe.places[path]
    return Origin(recipe.source_label, None, recipe.source.parent)


# --- not in this version: refused by name, so that nothing a person asked for is ignored --------


def settings_of_a_later_version(recipe: Recipe) -> Iterator[Finding]:
    """The schema knows these values so that recipes need not change when they come."""
    train = recipe.train
    asked_for = (
        (bool(recipe.tokenizer.new_tokens), "tokenizer.new_tokens", "tokenizer.new_tokens: []"),
        (
            bool(train.get("save_only_model")),
            "train.save_only_model: true",
            "train.save_only_model: false",
        ),
        (
            isinstance(recipe.adapter.lora.get("init_lora_weights"), str)
            and recipe.adapter.lora["init_lora_weights"] not in ("gaussian", "orthogonal"),
            "adapter.init_lora_weights",
            "adapter.init_lora_weights: true",
        ),
        (
            train["per_device_train_batch_size"] == "auto",
            "train.per_device_train_batch_size: auto",
            "train.per_device_train_batch_size: 1",
        ),
    )
    for is_asked_for, setting, line in asked_for:
        if is_asked_for:
            yield _later(setting.partition(":")[0], setting, line)


def partial_checkpointing_comes_later(recipe: Recipe) -> Iterator[Finding]:
    """`auto` and a number of layers need the memory plan."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        value = recipe.train.get(name)
        if value is not None and not isinstance(value, bool):
            path = _written_as(recipe, name)
            yield _later(path, f"{path}: {value}", f"{path}: true")


def pushing_waits_for_the_end(recipe: Recipe) -> Iterator[Finding]:
    """The Trainer would upload whatever lies in the run's directory at every save."""
    if recipe.train.get("push_to_hub"):
        what = "train.push_to_hub uploads during training, and what is finished is pushed by export"
        fix = "write export.push_to_hub: your-name/the-model, and delete train.push_to_hub"
        yield Finding(("train.push_to_hub",), what, fix)


def _later(path: str, setting: str, line: str) -> Finding:
    return Finding((path,), f"{setting} comes in a later version", f"write {line}")


def _written_as(recipe: Recipe, name: str) -> str:
    """The path that a person used: an older name may have been renamed."""
    older = f"train.{name.replace('activation', 'gradient')}"
    path = f"train.{name}"
    is_renamed = (
        recipe.is_written(older)
        and recipe.where(older)[: -len(older)] == (recipe.where(path)[: -len(path)])
    )
    return older if is_renamed else path


# --- data ---------------------------------------------------------------------------------------


def rows_come_from_somewhere(recipe: Recipe) -> Iterator[Finding]:
    """An empty list of data sets leaves nothing to learn."""
    lists = [("data.datasets", recipe.data.datasets)]
    for name, split in _splits(recipe):
        lists += [(f"{name}.datasets", split.datasets)] if split.datasets is not None else []
    for path, datasets in lists:
        if not datasets:
            fix = f"write {path}: [{{path: train.jsonl}}]"
            yield Finding((path,), f"{path} names no data set", fix)


def a_split_has_one_source(recipe: Recipe) -> Iterator[Finding]:
    """Held-out rows are a share of the training rows or a set of their own, not both."""
    for name, split in _splits(recipe):
        paths = (f"{name}.fraction", f"{name}.datasets")
        if split.fraction is not None and split.datasets is not None:
            what = f"{name} has both a fraction and data sets"
            yield Finding(paths, what, f"keep one: delete {paths[0]} or {paths[1]}")
        elif split.fraction is None and split.datasets is None:
            yield Finding((name, *paths), f"{name} is empty", f"write {paths[0]}: 0.05")


def groups_are_of_a_fraction(recipe: Recipe) -> Iterator[Finding]:
    """Only rows that are divided can be kept together."""
    for name, split in _splits(recipe):
        if split.group_by is not None and split.fraction is None and split.datasets is not None:
            what = f"{name}.group_by keeps groups together where a fraction is held out"
            paths = (f"{name}.group_by", f"{name}.datasets")
            yield Finding(paths, what, f"delete {name}.group_by")


def held_out_fractions_group_alike(recipe: Recipe) -> Iterator[Finding]:
    """A row has one place; two ways to draw it would tear the groups of one of them apart."""
    groups = {
        f"{name}.group_by": split.group_by
        for name, split in _splits(recipe)
        if split.fraction is not None
    }
    if len(set(groups.values())) > 1:
        column = next(column for column in groups.values() if column is not None)
        other = next(path for path, each in groups.items() if each != column)
        what = "validation and test divide the same rows, and group them differently"
        yield Finding(tuple(groups), what, f"write {other}: {column}")


def held_out_fractions_leave_rows_to_train_on(recipe: Recipe) -> Iterator[Finding]:
    """Both fractions are taken from the same training rows."""
    shares = {f"{name}.fraction": split.fraction or 0 for name, split in _splits(recipe)}
    if sum(shares.values()) >= 1:
        what = f"{' and '.join(shares)} hold out every row"
        yield Finding(tuple(shares), what, "write fractions that add up to less than 1")


def a_data_set_is_listed_once(recipe: Recipe) -> Iterator[Finding]:
    """The same rows twice are more often a slip than a wish; the wish has `repeat`."""
    seen: dict[tuple[Any, ...], str] = {}
    for path, dataset in _listed(recipe.data.datasets, "data.datasets"):
        first = seen.setdefault(_rows_of(dataset), path)
        if first != path:
            what = f'"{dataset.path}" is listed twice'
            fix = f"delete one, or write {first}.repeat: 2"
            yield Finding((first, path), what, fix)


def held_out_rows_are_not_training_rows(recipe: Recipe) -> Iterator[Finding]:
    """A score on rows that were learned says nothing."""
    training = {
        _rows_of(dataset): path for path, dataset in _listed(recipe.data.datasets, "data.datasets")
    }
    for name, split in _splits(recipe):
        for path, dataset in _listed(split.datasets or [], f"{name}.datasets"):
            if _rows_of(dataset) in training:
                what = f"{path} holds the rows that are trained on"
                fix = f"name another file or split, or write {name}: {{fraction: 0.05}}"
                yield Finding((f"{path}.path", training[_rows_of(dataset)]), what, fix)


def held_out_hub_data_names_its_split(recipe: Recipe) -> Iterator[Finding]:
    """Left out, the split would be `train`, which is rarely what is meant here."""
    for name, split in _splits(recipe):
        for path, dataset in _listed(split.datasets or [], f"{name}.datasets"):
            if is_hub_id(dataset.location) and dataset.split is None:
                fix = f"write {path}.split: {name.removeprefix('data.')}"
                yield Finding((f"{path}.path",), f"{path} does not say which split to take", fix)


def files_are_named_in_path(recipe: Recipe) -> Iterator[Finding]:
    """`path: json` with `data_files` is load_dataset's way; relative files would be lost."""
    for path, dataset in _all_datasets(recipe):
        if dataset.location in LOAD_DATASET_BUILDERS:
            file = dataset.data_files if isinstance(dataset.data_files, str) else "train.jsonl"
            what = f"{dataset.path} is a file type, not a data set"
            yield Finding((f"{path}.path",), what, f"write {path}.path: {file}")


def what_is_learned_fits_the_format(recipe: Recipe) -> Iterator[Finding]:
    """Chats have no completion, text no assistant; rows of tokens say what is learned."""
    loss_on = recipe.data.loss_on
    for path, dataset in _listed(recipe.data.datasets, "data.datasets"):
        wanted = None
        if loss_on == "completion" and dataset.format in CONVERSATION_FORMATS | {"text"}:
            wanted = "all" if dataset.format == "text" else "last_assistant"
        elif loss_on in ("assistant", "last_assistant") and dataset.format == "text":
            wanted = "all"
        elif loss_on not in ("auto", "all") and dataset.format == "tokenized":
            wanted = "auto"
        if wanted:
            what = f"data.loss_on: {loss_on} finds nothing in rows of format {dataset.format}"
            paths = ("data.loss_on", f"{path}.format")
            yield Finding(paths, what, f"write data.loss_on: {wanted}")


def a_template_date_is_a_day(recipe: Recipe) -> Iterator[Finding]:
    """Templates format the day themselves, so it must be one."""
    date = recipe.data.template_date
    if date is not None and not _DATE.fullmatch(date):
        what = f'data.template_date must be a day, not "{date}"'
        yield Finding(("data.template_date",), what, 'write data.template_date: "2026-01-31"')


# --- model, quantization, adapter -----------------------------------------------------------------


def remote_code_is_pinned(recipe: Recipe) -> Iterator[Finding]:
    """Code from a repository runs with the user's rights; a branch may change under them."""
    model = recipe.model
    is_pinned = is_local(model.location) or _COMMIT_OR_TAG.match(model.revision or "")
    if model.trust_remote_code and not is_pinned:
        what = f"trust_remote_code runs whatever code {model.model_name_or_path} holds that day"
        fix = "write model.revision: <the commit you have read>"
        yield Finding(("model.trust_remote_code", "model.revision"), what, fix)


def quantization_says_how(recipe: Recipe) -> Iterator[Finding]:
    """BitsAndBytesConfig does nothing unless exactly one of its two switches is on."""
    settings = recipe.quantization
    if settings is None:
        return
    switches = ("quantization.load_in_4bit", "quantization.load_in_8bit")
    in_4bit, in_8bit = (settings.get(path.rpartition(".")[2]) for path in switches)
    if in_4bit and in_8bit:
        what = "a model cannot be loaded in 4 bits and in 8 bits"
        yield Finding(switches, what, "delete one of the two lines")
    elif not in_4bit and not in_8bit:
        what = "quantization says neither load_in_4bit nor load_in_8bit"
        yield Finding(("quantization", *switches), what, "write quantization: nf4, or null")


def the_head_takes_no_adapter(recipe: Recipe) -> Iterator[Finding]:
    """TRL computes the loss from the head's own weight, so an adapter there never learns."""
    targets = recipe.adapter.lora.get("target_modules")
    names = targets if isinstance(targets, list) else [targets]
    if any(str(name).rpartition(".")[2] == "lm_head" for name in names):
        what = "an adapter on lm_head would never be trained"
        fix = "take lm_head out of adapter.target_modules, or write adapter.modules_to_save: "
        yield Finding(("adapter.target_modules",), what, f"{fix}[lm_head]")


def an_adapter_has_targets(recipe: Recipe) -> Iterator[Finding]:
    """An empty list would train nothing."""
    if recipe.adapter.lora.get("target_modules") == []:
        what = "adapter.target_modules is empty, so nothing would be trained"
        yield Finding(("adapter.target_modules",), what, "write adapter.target_modules: all-linear")


def a_continued_adapter_keeps_its_shape(recipe: Recipe) -> Iterator[Finding]:
    """The saved adapter brings its own rank and targets; others could not be loaded into it."""
    if not recipe.adapter.init_from:
        return
    given = tuple(f"adapter.{name}" for name in recipe.adapter.lora)
    if given:
        what = f"adapter.init_from brings its own settings, so {', '.join(given)} cannot be set"
        yield Finding(("adapter.init_from", *given), what, f"delete {', '.join(given)}")


# --- train --------------------------------------------------------------------------------------


def one_mixed_precision(recipe: Recipe) -> Iterator[Finding]:
    """The Trainer takes one type for its arithmetic."""
    for pair in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
        if all(recipe.train.get(name) for name in pair):
            paths = tuple(f"train.{name}" for name in pair)
            yield Finding(paths, f"{' and '.join(pair)} are both on", f"delete {paths[1]}")


def one_word_on_checkpointing(recipe: Recipe) -> Iterator[Finding]:
    """`gradient_checkpointing` is the older name of `activation_checkpointing`."""
    for suffix in ("", "_kwargs"):
        names = (f"activation_checkpointing{suffix}", f"gradient_checkpointing{suffix}")
        if names[0] in recipe.train and names[1] in recipe.train:
            paths = (f"train.{names[0]}", f"train.{names[1]}")
            what = f"{names[0]} and its older name {names[1]} disagree"
            yield Finding(paths, what, f"delete {paths[1]}")


def evaluation_needs_rows(recipe: Recipe) -> Iterator[Finding]:
    """Evaluating while training needs rows that are not trained on."""
    if recipe.data.validation is not None:
        return
    for name in ("eval_strategy", "eval_on_start", "do_eval"):
        if _train(recipe, name) not in (False, "no"):
            what = f"train.{name} is on, but there are no validation rows"
            fix = "write data.validation: {fraction: 0.05}"
            yield Finding((f"train.{name}", "data.validation"), what, fix)


def what_watches_evaluation_needs_it(recipe: Recipe) -> Iterator[Finding]:
    """Choosing by a score needs scores."""
    if _train(recipe, "eval_strategy") != "no":
        return
    train = recipe.train
    watchers = {
        "load_best_model_at_end": bool(train.get("load_best_model_at_end")),
        "early_stopping_patience": train["early_stopping_patience"] is not None,
        "save_strategy": train.get("save_strategy") == "best",
        "lr_scheduler_type": train["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy"),
    }
    for name in (name for name, watches in watchers.items() if watches):
        what = f"train.{name} looks at evaluations, but train.eval_strategy is no"
        fix = "write train.eval_strategy: epoch"
        yield Finding((f"train.{name}", "train.eval_strategy"), what, fix)


def early_stopping_keeps_the_best(recipe: Recipe) -> Iterator[Finding]:
    """Stopping after worse evaluations and keeping the worse model defeats the purpose."""
    stops_early = recipe.train["early_stopping_patience"] is not None
    if stops_early and not recipe.train.get("load_best_model_at_end"):
        what = "early stopping compares with the best model, which is not kept"
        fix = "write train.load_best_model_at_end: true"
        yield Finding(("train.early_stopping_patience", "train.load_best_model_at_end"), what, fix)


def the_best_model_is_saved_when_evaluated(recipe: Recipe) -> Iterator[Finding]:
    """The best model can only be loaded if it was saved at the step that showed it."""
    evaluates, saves = _train(recipe, "eval_strategy"), _train(recipe, "save_strategy")
    if not recipe.train.get("load_best_model_at_end") or evaluates == "no" or saves == "best":
        return
    if evaluates != saves:
        paths = ("train.save_strategy", "train.eval_strategy", "train.load_best_model_at_end")
        what = f"the best model may not be saved: evaluation by {evaluates}, saving by {saves}"
        yield Finding(paths, what, f"write train.save_strategy: {evaluates}")
    elif evaluates == "steps" and not _divides(*_steps_between(recipe)):
        eval_steps, save_steps = _steps_between(recipe)
        paths = ("train.save_steps", "train.eval_steps", "train.load_best_model_at_end")
        what = f"save_steps {save_steps:g} is no multiple of eval_steps {eval_steps:g}"
        yield Finding(paths, what, f"write train.save_steps: {eval_steps:g}")


def the_best_metric_exists(recipe: Recipe) -> Iterator[Finding]:
    """The Trainer would look for a number that no evaluation reports."""
    metric = recipe.train.get("metric_for_best_model")
    if metric is not None and metric not in BEST_METRICS:
        what = f'no evaluation during training reports "{metric}"'
        yield Finding(
            ("train.metric_for_best_model",), what, "write train.metric_for_best_model: eval_loss"
        )


def the_micro_batch_stays(recipe: Recipe) -> Iterator[Finding]:
    """`auto_find_batch_size` halves the micro-batch in mid-run and the global batch with it."""
    if recipe.train.get("auto_find_batch_size"):
        what = "train.auto_find_batch_size would change the global batch size unseen"
        fix = "write train.auto_find_batch_size: false"
        yield Finding(("train.auto_find_batch_size",), what, fix)


def one_process_saves(recipe: Recipe) -> Iterator[Finding]:
    """All machines share the run's folder, so that two of them would write the same checkpoint."""
    if recipe.train.get("save_on_each_node"):
        what = (
            "train.save_on_each_node would write each checkpoint twice: machines share output_dir"
        )
        fix = "write train.save_on_each_node: false"
        yield Finding(("train.save_on_each_node",), what, fix)


def steps_are_counted_or_off(recipe: Recipe) -> Iterator[Finding]:
    """-1 is the library's word for "not limited"; nought steps would train nothing."""
    steps = recipe.train.get("max_steps", -1)
    if steps != -1 and steps < 1:
        what = f"train.max_steps must be at least 1, or -1 for no limit, not {steps}"
        yield Finding(("train.max_steps",), what, "delete the line, or write train.max_steps: 100")


# --- evaluate -----------------------------------------------------------------------------------


def metrics_are_known(recipe: Recipe) -> Iterator[Finding]:
    """Found out after training, a misspelt metric would cost the whole evaluation."""
    for index, metric in enumerate(recipe.evaluate.metrics):
        if metric not in EVALUATE_METRICS:
            what = f'no metric "{metric}"; there are: {", ".join(EVALUATE_METRICS)}'
            fix = f"write evaluate.metrics: [{EVALUATE_METRICS[0]}]"
            yield Finding((f"evaluate.metrics.{index}",), what, fix)


RULES: tuple[Rule, ...] = (
    settings_of_a_later_version,
    partial_checkpointing_comes_later,
    pushing_waits_for_the_end,
    rows_come_from_somewhere,
    a_split_has_one_source,
    groups_are_of_a_fraction,
    held_out_fractions_group_alike,
    held_out_fractions_leave_rows_to_train_on,
    a_data_set_is_listed_once,
    held_out_rows_are_not_training_rows,
    held_out_hub_data_names_its_split,
    files_are_named_in_path,
    what_is_learned_fits_the_format,
    a_template_date_is_a_day,
    remote_code_is_pinned,
    quantization_says_how,
    the_head_takes_no_adapter,
    an_adapter_has_targets,
    a_continued_adapter_keeps_its_shape,
    one_mixed_precision,
    one_word_on_checkpointing,
    evaluation_needs_rows,
    what_watches_evaluation_needs_it,
    early_stopping_keeps_the_best,
    the_best_model_is_saved_when_evaluated,
    the_best_metric_exists,
    the_micro_batch_stays,
    one_process_saves,
    steps_are_counted_or_off,
    metrics_are_known,
    *DEEPSPEED_RULES,
)


def _train(recipe: Recipe, name: str) -> Any:
    """A train setting, or the library's default where the recipe leaves it to the library."""
    return recipe.train.get(name, train_fields()[name].default)


def _steps_between(recipe: Recipe) -> tuple[float, float]:
    """Steps between evaluations (by default those between logs) and between saves."""
    eval_steps = _train(recipe, "eval_steps") or _train(recipe, "logging_steps")
    return eval_steps, _train(recipe, "save_steps")


def _divides(part: float, whole: float) -> bool:
    """Whether `part` goes into `whole`; below 1 both are shares of the run, as in the Trainer."""
    if part < 1 or whole < 1:
        scale = 1_000_000
        return part < 1 and whole < 1 and round(whole * scale) % round(part * scale) == 0
    return whole % part == 0


def _splits(recipe: Recipe) -> list[tuple[str, SplitSection]]:
    splits = {"data.validation": recipe.data.validation, "data.test": recipe.data.test}
    return [(name, split) for name, split in splits.items() if split is not None]


def _listed(datasets: list[DatasetSection], path: str) -> Iterator[tuple[str, DatasetSection]]:
    return ((f"{path}.{index}", dataset) for index, dataset in enumerate(datasets))


def _all_datasets(recipe: Recipe) -> Iterator[tuple[str, DatasetSection]]:
    yield from _listed(recipe.data.datasets, "data.datasets")
    for name, split in _splits(recipe):
        yield from _listed(split.datasets or [], f"{name}.datasets")


def _rows_of(dataset: DatasetSection) -> tuple[Any, ...]:
    """What decides which rows these are."""
    return (
        dataset.location, dataset.name, dataset.split or "train", dataset.revision,
        repr(dataset.data_files),
    )  # fmt: skip
