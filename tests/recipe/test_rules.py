"""Each rule is broken once, and says how to keep it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

from lora_sft.recipe import rules
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.rules import table
from tests.recipe.recipes import SMALLEST, fault_of, faults_of, read_smallest

VALIDATION = "data.validation={fraction: 0.1}"
CASES = [
    ("settings_of_a_later_version", ["tokenizer.new_tokens=[a]"], "write tokenizer.new_tokens: []"),
    (
        "pushing_waits_for_the_end",
        ["train.push_to_hub=true"],
        "write export.push_to_hub: your-name/the-model, and delete train.push_to_hub",
    ),
    (
        "settings_of_a_later_version",
        ["train.per_device_train_batch_size=auto"],
        "write train.per_device_train_batch_size: 1",
    ),
    (
        "partial_checkpointing_comes_later",
        ["train.activation_checkpointing=auto"],
        "write train.activation_checkpointing: true",
    ),
    (
        "partial_checkpointing_comes_later",
        ["train.gradient_checkpointing=12"],
        "write train.gradient_checkpointing: true",
    ),
    (
        "rows_come_from_somewhere",
        ["data.datasets=[]"],
        "write data.datasets: [{path: train.jsonl}]",
    ),
    (
        "rows_come_from_somewhere",
        ["data.test={datasets: []}"],
        "write data.test.datasets: [{path: train.jsonl}]",
    ),
    (
        "a_split_has_one_source",
        ["data.test={fraction: 0.1, datasets: [{path: a/b, split: test}]}"],
        "keep one: delete data.test.fraction or data.test.datasets",
    ),
    ("a_split_has_one_source", ["data.validation={}"], "write data.validation.fraction: 0.05"),
    (
        "groups_are_of_a_fraction",
        ["data.test={datasets: [{path: a/b, split: test}], group_by: id}"],
        "delete data.test.group_by",
    ),
    (
        "held_out_fractions_group_alike",
        ["data.validation={fraction: 0.1, group_by: id}", "data.test={fraction: 0.1}"],
        "write data.test.group_by: id",
    ),
    (
        "held_out_fractions_leave_rows_to_train_on",
        ["data.validation.fraction=0.5", "data.test.fraction=0.5"],
        "write fractions that add up to less than 1",
    ),
    (
        "a_data_set_is_listed_once",
        ["data.datasets=[{path: a/b}, {path: a/b, split: train}]"],
        "delete one, or write data.datasets.0.repeat: 2",
    ),
    (
        "held_out_rows_are_not_training_rows",
        ["data.validation={datasets: [{path: some/data, split: train}]}"],
        "name another file or split, or write data.validation: {fraction: 0.05}",
    ),
    (
        "held_out_hub_data_names_its_split",
        ["data.validation={datasets: [{path: other/data}]}"],
        "write data.validation.datasets.0.split: validation",
    ),
    (
        "files_are_named_in_path",
        ["data.datasets=[{path: json, data_files: x.jsonl}]"],
        "write data.datasets.0.path: x.jsonl",
    ),
    (
        "what_is_learned_fits_the_format",
        ["data.loss_on=completion", "data.datasets.0.format=messages"],
        "write data.loss_on: last_assistant",
    ),
    (
        "what_is_learned_fits_the_format",
        ["data.loss_on=assistant", "data.datasets.0.format=text"],
        "write data.loss_on: all",
    ),
    (
        "what_is_learned_fits_the_format",
        ["data.loss_on=assistant", "data.datasets.0.format=tokenized"],
        "write data.loss_on: auto",
    ),
    (
        "a_template_date_is_a_day",
        ["data.template_date=2026-13-01"],
        'write data.template_date: "2026-01-31"',
    ),
    (
        "remote_code_is_pinned",
        ["model.trust_remote_code=true"],
        "write model.revision: <the commit you have read>",
    ),
    (
        "quantization_says_how",
        ["quantization={load_in_4bit: true, load_in_8bit: true}"],
        "delete one of the two lines",
    ),
    (
        "quantization_says_how",
        ["quantization={bnb_4bit_quant_type: nf4}"],
        "write quantization: nf4, or null",
    ),
    (
        "the_head_takes_no_adapter",
        ["adapter.target_modules=[q_proj, lm_head]"],
        "take lm_head out of adapter.target_modules, or write adapter.modules_to_save: [lm_head]",
    ),
    (
        "an_adapter_has_targets",
        ["adapter.target_modules=[]"],
        "write adapter.target_modules: all-linear",
    ),
    (
        "a_continued_adapter_keeps_its_shape",
        ["adapter={init_from: org/adapter, r: 8}"],
        "delete adapter.r",
    ),
    ("one_mixed_precision", ["train.bf16=true", "train.fp16=true"], "delete train.fp16"),
    (
        "one_word_on_checkpointing",
        ["train.activation_checkpointing=true", "train.gradient_checkpointing=false"],
        "delete train.gradient_checkpointing",
    ),
    (
        "evaluation_needs_rows",
        ["train.eval_strategy=epoch"],
        "write data.validation: {fraction: 0.05}",
    ),
    (
        "what_watches_evaluation_needs_it",
        [VALIDATION, "train.load_best_model_at_end=true"],
        "write train.eval_strategy: epoch",
    ),
    (
        "what_watches_evaluation_needs_it",
        [VALIDATION, "train.save_strategy=best"],
        "write train.eval_strategy: epoch",
    ),
    (
        "early_stopping_keeps_the_best",
        [VALIDATION, "train.eval_strategy=epoch", "train.early_stopping_patience=2"],
        "write train.load_best_model_at_end: true",
    ),
    (
        "the_best_model_is_saved_when_evaluated",
        [VALIDATION, "train.eval_strategy=epoch", "train.load_best_model_at_end=true"],
        "write train.save_strategy: epoch",
    ),
    (
        "the_best_model_is_saved_when_evaluated",
        [
            VALIDATION,
            "train={eval_strategy: steps, eval_steps: 30, save_steps: 40}",
            "train.load_best_model_at_end=true",
        ],
        "write train.save_steps: 30",
    ),
    (
        "the_best_metric_exists",
        ["train.metric_for_best_model=accuracy"],
        "write train.metric_for_best_model: eval_loss",
    ),
    (
        "the_micro_batch_stays",
        ["train.auto_find_batch_size=true"],
        "write train.auto_find_batch_size: false",
    ),
    (
        "one_process_saves",
        ["train.save_on_each_node=true"],
        "write train.save_on_each_node: false",
    ),
    (
        "steps_are_counted_or_off",
        ["train.max_steps=0"],
        "delete the line, or write train.max_steps: 100",
    ),
    ("metrics_are_known", ["evaluate.metrics=[bleu]"], "write evaluate.metrics: [exact_match]"),
    (
        "a_policy_leaves_the_numbers_to_the_recipe",
        ["train.deepspeed={gradient_clipping: 0.5}"],
        'write "gradient_clipping": "auto" in train.deepspeed',
    ),
    (
        "a_policy_leaves_the_numbers_to_the_recipe",
        ["train.deepspeed={optimizer: {type: Adam}}"],
        'delete "optimizer" in train.deepspeed',
    ),
    (
        "a_policy_leaves_the_numbers_to_the_recipe",
        ["train.deepspeed={bf16: {enabled: true}}"],
        'delete "bf16" in train.deepspeed',
    ),
    (
        "float16_needs_a_loss_scale_that_is_shared",
        ["train.deepspeed=zero1", "model.dtype=float16"],
        "write model.dtype: bfloat16, or leave out train.deepspeed",
    ),
    (
        "eight_bit_weights_are_not_partitioned",
        ["train.deepspeed=zero3", "quantization=int8"],
        "write quantization: nf4, or train.deepspeed: zero2",
    ),
    (
        "four_bit_storage_is_the_dtype",
        [
            "train.deepspeed=zero3_offload",
            "quantization={load_in_4bit: true, bnb_4bit_quant_storage: uint8}",
        ],
        "write quantization.bnb_4bit_quant_storage: bfloat16",
    ),
    (
        "checkpointing_is_reentrant",
        ["train.deepspeed=zero3", "train.activation_checkpointing_kwargs={use_reentrant: false}"],
        "delete train.activation_checkpointing_kwargs",
    ),
    (
        "single_tokens_are_not_partitioned",
        ["train.deepspeed=zero3", "adapter.trainable_token_indices=[1, 2]"],
        "write train.deepspeed: zero2, or adapter.modules_to_save: [embed_tokens, lm_head]",
    ),
    (
        "an_optimizer_may_see_flat_shares",
        ["train.deepspeed=zero2", "train.optim=adafactor"],
        "write train.optim: adamw_torch_fused",
    ),
    (
        "an_optimizer_may_see_flat_shares",
        ["train.deepspeed=zero3", "train.optim=stable_adamw"],
        "write train.optim: adamw_torch_fused",
    ),
    (
        "one_way_to_spread_the_model",
        ["train.deepspeed=zero2", "train.fsdp=full_shard"],
        "delete train.fsdp",
    ),
]
# A file that is no JSON has its own test below: it needs one on disk.
WITH_A_FILE = {"a_policy_is_json"}


@pytest.mark.parametrize(("rule", "overrides", "fix"), CASES)
def test_breaking_a_rule_says_how_to_keep_it(tmp_path, rule, overrides, fix):
    fault = fault_of(tmp_path, SMALLEST, *overrides)
    assert fault.fix == fix
    assert fault.what
    assert fault.where.startswith("command line  ")


@pytest.mark.parametrize(("rule", "overrides", "fix"), CASES)
def test_only_the_rule_that_is_named_speaks(tmp_path, monkeypatch, rule, overrides, fix):
    monkeypatch.setattr(table, "RULES", ())
    recipe = read_smallest(tmp_path, *overrides)
    monkeypatch.undo()
    assert [one.__name__ for one in table.RULES if list(one(recipe))] == [rule]


def test_every_rule_has_a_case_and_a_reason():
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


def test_a_deepspeed_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "ds.json").write_text("{")
    fault = fault_of(tmp_path, SMALLEST + "train: {deepspeed: ds.json}\n")
    assert "the DeepSpeed file cannot be read" in fault.what
    assert fault.where == "my.yaml:6  train.deepspeed"


def test_a_contradicting_deepspeed_file_names_both_places(tmp_path):
    (tmp_path / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 8}')
    train = "train:\n  deepspeed: ds.json\n  per_device_train_batch_size: 4\n"
    fault = fault_of(tmp_path, SMALLEST + train)
    assert "ds.json says train_micro_batch_size_per_gpu: 8" in fault.what
    assert "my.yaml:8  train.per_device_train_batch_size" in fault.where
    assert fault.fix == 'write "train_micro_batch_size_per_gpu": "auto" in ds.json'


@pytest.mark.parametrize("overrides", GOOD)
def test_what_goes_together_is_left_alone(tmp_path, overrides):
    read_smallest(tmp_path, *overrides)


def test_a_rule_is_silent_about_what_already_has_a_fault(tmp_path):
    faults = faults_of(tmp_path, SMALLEST, "train.bf16=true", "train.fp16=yes")
    assert [fault.where for fault in faults] == ["command line  train.fp16"]


def test_rules_find_nothing_in_the_smallest_recipe(tmp_path):
    recipe, faults = read_smallest(tmp_path), FaultList()
    table.find_rule_faults(recipe, faults)
    faults.raise_if_any()
