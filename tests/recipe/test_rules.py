"""For each rule, a recipe that breaks it is refused with the fix."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

from lora_sft.recipe import rules
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.rules import table
from tests.recipe.recipes import SMALLEST, fault_of, faults_of, read, read_smallest

VALIDATION = "data.validation={fraction: 0.1}"
CASES = [
    (
        "settings_work_in_this_version",
        ["tokenizer.new_tokens=[a]"],
        "write tokenizer.new_tokens: []",
    ),
    (
        "push_happens_after_training",
        ["train.push_to_hub=true"],
        "write export.push_to_hub: your-name/the-model, and delete train.push_to_hub",
    ),
    (
        "settings_work_in_this_version",
        ["train.per_device_train_batch_size=auto"],
        "write train.per_device_train_batch_size: 1",
    ),
    (
        "checkpointing_is_on_or_off",
        ["train.activation_checkpointing=auto"],
        "write train.activation_checkpointing: true",
    ),
    (
        "checkpointing_is_on_or_off",
        ["train.gradient_checkpointing=12"],
        "write train.gradient_checkpointing: true",
    ),
    (
        "dataset_lists_are_not_empty",
        ["data.datasets=[]"],
        "write data.datasets: [{path: train.jsonl}]",
    ),
    (
        "dataset_lists_are_not_empty",
        ["data.test={datasets: []}"],
        "write data.test.datasets: [{path: train.jsonl}]",
    ),
    (
        "split_has_one_source",
        ["data.test={fraction: 0.1, datasets: [{path: a/b, split: test}]}"],
        "delete data.test.fraction or data.test.datasets",
    ),
    ("split_has_one_source", ["data.validation={}"], "write data.validation.fraction: 0.05"),
    (
        "group_by_needs_a_fraction",
        ["data.test={datasets: [{path: a/b, split: test}], group_by: id}"],
        "delete data.test.group_by",
    ),
    (
        "fractions_use_the_same_groups",
        ["data.validation={fraction: 0.1, group_by: id}", "data.test={fraction: 0.1}"],
        "write data.test.group_by: id",
    ),
    (
        "fractions_leave_training_rows",
        ["data.validation.fraction=0.5", "data.test.fraction=0.5"],
        "write fractions that add up to less than 1",
    ),
    (
        "dataset_is_listed_once",
        ["data.datasets=[{path: a/b}, {path: a/b, split: train}]"],
        "delete one, or write data.datasets.0.repeat: 2",
    ),
    (
        "held_out_rows_are_not_training_rows",
        ["data.validation={datasets: [{path: some/data, split: train}]}"],
        "name another file or split, or write data.validation: {fraction: 0.05}",
    ),
    (
        "held_out_hub_dataset_names_its_split",
        ["data.validation={datasets: [{path: other/data}]}"],
        "write data.validation.datasets.0.split: validation",
    ),
    (
        "path_names_the_data_file",
        ["data.datasets=[{path: json, data_files: x.jsonl}]"],
        "write data.datasets.0.path: x.jsonl",
    ),
    (
        "loss_on_fits_the_format",
        ["data.loss_on=completion", "data.datasets.0.format=messages"],
        "write data.loss_on: last_assistant",
    ),
    (
        "loss_on_fits_the_format",
        ["data.loss_on=assistant", "data.datasets.0.format=text"],
        "write data.loss_on: all",
    ),
    (
        "loss_on_fits_the_format",
        ["data.loss_on=assistant", "data.datasets.0.format=tokenized"],
        "write data.loss_on: auto",
    ),
    (
        "template_date_is_a_date",
        ["data.template_date=2026-13-01"],
        'write data.template_date: "2026-01-31"',
    ),
    (
        "remote_code_has_a_fixed_revision",
        ["model.trust_remote_code=true"],
        "write model.revision: <a commit whose code you have read>",
    ),
    (
        "quantization_sets_one_switch",
        ["quantization={load_in_4bit: true, load_in_8bit: true}"],
        "delete one of the two lines",
    ),
    (
        "quantization_sets_one_switch",
        ["quantization={bnb_4bit_quant_type: nf4}"],
        "write quantization: nf4, or null",
    ),
    (
        "lm_head_is_not_a_target",
        ["adapter.target_modules=[q_proj, lm_head]"],
        "remove lm_head from adapter.target_modules, or write adapter.modules_to_save: [lm_head]",
    ),
    (
        "target_modules_are_not_empty",
        ["adapter.target_modules=[]"],
        "write adapter.target_modules: all-linear",
    ),
    (
        "continued_adapter_keeps_its_settings",
        ["adapter={init_from: org/adapter, r: 8}"],
        "delete adapter.r",
    ),
    ("only_one_mixed_precision", ["train.bf16=true", "train.fp16=true"], "delete train.fp16"),
    (
        "checkpointing_names_agree",
        ["train.activation_checkpointing=true", "train.gradient_checkpointing=false"],
        "delete train.gradient_checkpointing",
    ),
    (
        "evaluation_has_validation_rows",
        ["train.eval_strategy=epoch"],
        "write data.validation: {fraction: 0.05}",
    ),
    (
        "evaluation_is_on_if_its_results_are_used",
        [VALIDATION, "train.load_best_model_at_end=true"],
        "write train.eval_strategy: epoch",
    ),
    (
        "evaluation_is_on_if_its_results_are_used",
        [VALIDATION, "train.save_strategy=best"],
        "write train.eval_strategy: epoch",
    ),
    (
        "early_stopping_keeps_the_best_model",
        [VALIDATION, "train.eval_strategy=epoch", "train.early_stopping_patience=2"],
        "write train.load_best_model_at_end: true",
    ),
    (
        "best_model_is_saved_when_evaluated",
        [VALIDATION, "train.eval_strategy=epoch", "train.load_best_model_at_end=true"],
        "write train.save_strategy: epoch",
    ),
    (
        "best_model_is_saved_when_evaluated",
        [
            VALIDATION,
            "train={eval_strategy: steps, eval_steps: 30, save_steps: 40}",
            "train.load_best_model_at_end=true",
        ],
        "write train.save_steps: 30",
    ),
    (
        "best_metric_is_reported",
        ["train.metric_for_best_model=accuracy"],
        "write train.metric_for_best_model: eval_loss",
    ),
    (
        "micro_batch_size_is_fixed",
        ["train.auto_find_batch_size=true"],
        "write train.auto_find_batch_size: false",
    ),
    (
        "only_one_machine_saves",
        ["train.save_on_each_node=true"],
        "write train.save_on_each_node: false",
    ),
    (
        "max_steps_is_positive_or_off",
        ["train.max_steps=0"],
        "delete the line, or write train.max_steps: 100",
    ),
    ("metrics_are_known", ["evaluate.metrics=[bleu]"], "write evaluate.metrics: [exact_match]"),
    (
        "policy_agrees_with_the_recipe",
        ["train.deepspeed={gradient_clipping: 0.5}"],
        'write "gradient_clipping": "auto" in train.deepspeed',
    ),
    (
        "policy_agrees_with_the_recipe",
        ["train.deepspeed={optimizer: {type: Adam}}"],
        'delete "optimizer" in train.deepspeed',
    ),
    (
        "policy_agrees_with_the_recipe",
        ["train.deepspeed={bf16: {enabled: true}}"],
        'delete "bf16" in train.deepspeed',
    ),
    (
        "deepspeed_runs_without_float16",
        ["train.deepspeed=zero1", "model.dtype=float16"],
        "write model.dtype: bfloat16, or leave out train.deepspeed",
    ),
    (
        "zero3_runs_without_8bit_weights",
        ["train.deepspeed=zero3", "quantization=int8"],
        "write quantization: nf4, or train.deepspeed: zero2",
    ),
    (
        "zero3_stores_4bit_codes_in_model_dtype",
        [
            "train.deepspeed=zero3_offload",
            "quantization={load_in_4bit: true, bnb_4bit_quant_storage: uint8}",
        ],
        "write quantization.bnb_4bit_quant_storage: bfloat16",
    ),
    (
        "zero3_uses_reentrant_checkpointing",
        ["train.deepspeed=zero3", "train.activation_checkpointing_kwargs={use_reentrant: false}"],
        "delete train.activation_checkpointing_kwargs",
    ),
    (
        "zero3_runs_without_trained_tokens",
        ["train.deepspeed=zero3", "adapter.trainable_token_indices=[1, 2]"],
        "write train.deepspeed: zero2, or adapter.modules_to_save: [embed_tokens, lm_head]",
    ),
    (
        "deepspeed_has_an_elementwise_optimizer",
        ["train.deepspeed=zero2", "train.optim=adafactor"],
        "write train.optim: adamw_torch_fused",
    ),
    (
        "deepspeed_has_an_elementwise_optimizer",
        ["train.deepspeed=zero3", "train.optim=stable_adamw"],
        "write train.optim: adamw_torch_fused",
    ),
    (
        "deepspeed_runs_without_fsdp",
        ["train.deepspeed=zero2", "train.fsdp=full_shard"],
        "delete train.fsdp",
    ),
    (
        "settings_belong_to_the_kind",
        ["task.kind=summarization", "task.labels=[a, b]"],
        "delete the line, or write task.kind: text-classification",
    ),
    (
        "label_columns_are_multi_label",
        ["task.kind=text-classification", "task.label_columns=[a, b]"],
        "write task.multi_label: true",
    ),
    (
        "labels_are_different",
        ["task.kind=text-classification", "task.labels=[a, a]"],
        "write each label once",
    ),
    (
        "prompts_have_an_answer",
        ["data.datasets.0.prompt={user: a}"],
        'write data.datasets.0.prompt.assistant: "{{ answer }}", or set a task',
    ),
    (
        "formats_fit_the_task",
        ["task=translation", "data.datasets.0.format=messages"],
        "write data.datasets.0.format: table",
    ),
    ("only_tasks_shorten", ["data.overlong=shorten"], "write data.overlong: drop"),
]
# These rules have their own tests, because they need a file on disk.
WITH_A_FILE = {"policy_is_json", "remote_code_is_not_trusted_by_a_run"}


@pytest.mark.parametrize(("rule", "overrides", "fix"), CASES)
def test_a_broken_rule_is_reported_with_its_fix(tmp_path, rule, overrides, fix):
    fault = fault_of(tmp_path, SMALLEST, *overrides)
    assert fault.fix == fix
    assert fault.what
    assert fault.where.startswith("command line  ")


@pytest.mark.parametrize(("rule", "overrides", "fix"), CASES)
def test_each_case_breaks_only_the_named_rule(tmp_path, monkeypatch, rule, overrides, fix):
    monkeypatch.setattr(table, "RULES", ())
    recipe = read_smallest(tmp_path, *overrides)
    monkeypatch.undo()
    assert [each.__name__ for each in table.RULES if list(each(recipe))] == [rule]


def test_every_rule_has_a_case_and_a_docstring():
    assert {rule for rule, _, _ in CASES} | WITH_A_FILE == {rule.__name__ for rule in table.RULES}
    assert all(rule.__doc__ for rule in table.RULES)


def test_every_function_of_the_rule_files_is_in_the_table():
    names = [module.name for module in pkgutil.iter_modules(rules.__path__)]
    files = [importlib.import_module(f"{rules.__name__}.{name}") for name in names]
    functions = {
        function
        for file in files
        if file.__name__.endswith("_rules")
        for name, function in inspect.getmembers(file, inspect.isfunction)
        if function.__module__ == file.__name__ and not name.startswith("_")
    }
    assert functions == set(table.RULES)
    assert len(functions) >= 39


GOOD = [
    ["model.trust_remote_code=true", "model.revision=0123abc"],
    ["adapter={init_from: org/adapter}"],
    ["adapter={use_dora: true, use_rslora: true}", "quantization=nf4"],
    ["quantization=int8", "train.max_steps=5"],
    [VALIDATION, "train.eval_strategy=steps", "train.eval_on_start=true"],
    [
        VALIDATION,
        "train={eval_strategy: steps, eval_steps: 0.1, save_steps: 0.3}",
        "train.load_best_model_at_end=true",
        "train.early_stopping_patience=3",
        "train.metric_for_best_model=eval_loss",
    ],
    ["data.datasets=[{path: a/b, name: x}, {path: a/b, name: y}]"],
    ["data.validation={fraction: 0.1, group_by: id}", "data.test={fraction: 0.1, group_by: id}"],
    ["data.datasets.0.format=tokenized", "data.loss_on=all", "data.duplicates=drop"],
    ["data.validation={datasets: [{path: some/data, split: test}]}"],
    ["train.gradient_checkpointing=true", "train.activation_checkpointing=true"],
    ["train.deepspeed=zero3", "quantization=nf4", "train.bf16=true"],
    ["train.deepspeed=zero2", "quantization=nf4", "train.optim=paged_adamw_8bit"],
    ["train.deepspeed=zero2", "train.optim=sgd"],
    ["train.optim=adafactor"],
    ["train.deepspeed={gradient_clipping: 1.0, bf16: {enabled: auto}, fp16: {enabled: false}}"],
]


def test_trust_that_a_run_directory_sets_is_refused(tmp_path):
    trusting = SMALLEST.replace(
        "model: some/model",
        "model: {model_name_or_path: some/model, revision: 0123abc, trust_remote_code: true}",
    )
    assert read(tmp_path, trusting).model.trust_remote_code
    (tmp_path / "manifest.json").write_text("{}")
    fault = fault_of(tmp_path, trusting)
    assert fault.where == "my.yaml:1  model.trust_remote_code"
    assert "--trust-remote-code" in fault.fix
    assert read(tmp_path, trusting, "model.trust_remote_code=true").model.trust_remote_code


def test_a_deepspeed_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "ds.json").write_text("{")
    fault = fault_of(tmp_path, SMALLEST + "train: {deepspeed: ds.json}\n")
    assert "the DeepSpeed file cannot be read" in fault.what
    assert fault.where == "my.yaml:6  train.deepspeed"


def test_the_error_for_a_contradicting_deepspeed_file_names_both_places(tmp_path):
    (tmp_path / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 8}')
    train = "train:\n  deepspeed: ds.json\n  per_device_train_batch_size: 4\n"
    fault = fault_of(tmp_path, SMALLEST + train)
    assert "ds.json sets train_micro_batch_size_per_gpu: 8" in fault.what
    assert "my.yaml:8  train.per_device_train_batch_size" in fault.where
    assert fault.fix == 'write "train_micro_batch_size_per_gpu": "auto" in ds.json'


@pytest.mark.parametrize("overrides", GOOD)
def test_valid_combinations_of_settings_are_accepted(tmp_path, overrides):
    read_smallest(tmp_path, *overrides)


def test_a_rule_does_not_report_a_setting_that_already_has_a_fault(tmp_path):
    faults = faults_of(tmp_path, SMALLEST, "train.bf16=true", "train.fp16=yes")
    assert [fault.where for fault in faults] == ["command line  train.fp16"]


def test_the_smallest_recipe_breaks_no_rule(tmp_path):
    recipe, faults = read_smallest(tmp_path), FaultList()
    table.find_rule_faults(recipe, faults)
    faults.raise_if_any()
