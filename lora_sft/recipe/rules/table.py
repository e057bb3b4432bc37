"""Every rule of the recipe in one table, and the function that runs them."""

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
    later_version_rules.settings_of_a_later_version,
    later_version_rules.partial_checkpointing_comes_later,
    later_version_rules.pushing_waits_for_the_end,
    data_rules.rows_come_from_somewhere,
    data_rules.a_split_has_one_source,
    data_rules.groups_are_of_a_fraction,
    data_rules.held_out_fractions_group_alike,
    data_rules.held_out_fractions_leave_rows_to_train_on,
    data_rules.a_data_set_is_listed_once,
    data_rules.held_out_rows_are_not_training_rows,
    data_rules.held_out_hub_data_names_its_split,
    data_rules.files_are_named_in_path,
    data_rules.what_is_learned_fits_the_format,
    data_rules.a_template_date_is_a_day,
    model_rules.remote_code_is_pinned,
    model_rules.quantization_says_how,
    model_rules.the_head_takes_no_adapter,
    model_rules.an_adapter_has_targets,
    model_rules.a_continued_adapter_keeps_its_shape,
    train_rules.one_mixed_precision,
    train_rules.one_word_on_checkpointing,
    train_rules.evaluation_needs_rows,
    train_rules.what_watches_evaluation_needs_it,
    train_rules.early_stopping_keeps_the_best,
    train_rules.the_best_model_is_saved_when_evaluated,
    train_rules.the_best_metric_exists,
    train_rules.the_micro_batch_stays,
    train_rules.one_process_saves,
    train_rules.steps_are_counted_or_off,
    evaluate_rules.metrics_are_known,
    deepspeed_rules.a_policy_is_json,
    deepspeed_rules.a_policy_leaves_the_numbers_to_the_recipe,
    deepspeed_rules.float16_needs_a_loss_scale_that_is_shared,
    deepspeed_rules.eight_bit_weights_are_not_partitioned,
    deepspeed_rules.four_bit_storage_is_the_dtype,
    deepspeed_rules.checkpointing_is_reentrant,
    deepspeed_rules.single_tokens_are_not_partitioned,
    deepspeed_rules.an_optimizer_may_see_flat_shares,
    deepspeed_rules.one_way_to_spread_the_model,
)


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
