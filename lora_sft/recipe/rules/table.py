"""The list of all rules, and the function that runs them."""

from __future__ import annotations

from lora_sft.errors import Fault
from lora_sft.recipe.fault_list import FaultList
from lora_sft.recipe.resolved import Recipe
from lora_sft.recipe.rules import (
    data_rules,
    deepspeed_rules,
    evaluate_rules,
    later_version_rules,
    model_rules,
    train_rules,
)
from lora_sft.recipe.rules.finding import Finding, Rule
from lora_sft.recipe.written import Origin

RULES: tuple[Rule, ...] = (
    later_version_rules.settings_work_in_this_version,
    later_version_rules.checkpointing_is_on_or_off,
    later_version_rules.push_happens_after_training,
    data_rules.dataset_lists_are_not_empty,
    data_rules.split_has_one_source,
    data_rules.group_by_needs_a_fraction,
    data_rules.fractions_use_the_same_groups,
    data_rules.fractions_leave_training_rows,
    data_rules.dataset_is_listed_once,
    data_rules.held_out_rows_are_not_training_rows,
    data_rules.held_out_hub_dataset_names_its_split,
    data_rules.path_names_the_data_file,
    data_rules.loss_on_fits_the_format,
    data_rules.template_date_is_a_date,
    model_rules.remote_code_has_a_fixed_revision,
    model_rules.remote_code_is_not_trusted_by_a_run,
    model_rules.quantization_sets_one_switch,
    model_rules.lm_head_is_not_a_target,
    model_rules.target_modules_are_not_empty,
    model_rules.continued_adapter_keeps_its_settings,
    train_rules.only_one_mixed_precision,
    train_rules.checkpointing_names_agree,
    train_rules.evaluation_has_validation_rows,
    train_rules.evaluation_is_on_if_its_results_are_used,
    train_rules.early_stopping_keeps_the_best_model,
    train_rules.best_model_is_saved_when_evaluated,
    train_rules.best_metric_is_reported,
    train_rules.micro_batch_size_is_fixed,
    train_rules.only_one_machine_saves,
    train_rules.max_steps_is_positive_or_off,
    evaluate_rules.metrics_are_known,
    deepspeed_rules.policy_is_json,
    deepspeed_rules.policy_agrees_with_the_recipe,
    deepspeed_rules.deepspeed_runs_without_float16,
    deepspeed_rules.zero3_runs_without_8bit_weights,
    deepspeed_rules.zero3_stores_4bit_codes_in_model_dtype,
    deepspeed_rules.zero3_uses_reentrant_checkpointing,
    deepspeed_rules.zero3_runs_without_trained_tokens,
    deepspeed_rules.deepspeed_has_an_elementwise_optimizer,
    deepspeed_rules.deepspeed_runs_without_fsdp,
)


def find_rule_faults(recipe: Recipe, faults: FaultList) -> None:
    """Run all rules and record their findings, except about paths that already have a fault."""
    for rule in RULES:
        for finding in rule(recipe):
            if not any(faults.overlaps_faulty(path) for path in finding.paths):
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
