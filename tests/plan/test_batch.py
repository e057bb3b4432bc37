"""The global batch has the recipe's size on any number of processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lora_sft.errors import RecipeError
from lora_sft.plan.batch import make_batch_plan


def recipe(**train: object) -> SimpleNamespace:
    return SimpleNamespace(train=train, where=lambda field: f"my.yaml:3  {field}")


@pytest.mark.parametrize(
    ("micro", "world_size", "accumulation"), [(1, 1, 16), (2, 1, 8), (2, 2, 4), (4, 4, 1)]
)
def test_the_number_of_accumulation_steps_follows_from_the_global_batch(
    micro, world_size, accumulation
):
    plan = make_batch_plan(
        recipe(per_device_train_batch_size=micro, global_batch_size=16), world_size
    )
    assert plan.accumulation_steps == accumulation
    assert plan.global_batch_size == 16


def test_the_error_for_an_indivisible_batch_names_the_two_nearest_valid_sizes():
    with pytest.raises(RecipeError) as caught:
        make_batch_plan(recipe(per_device_train_batch_size=3, global_batch_size=16), 2)
    assert caught.value.where == "my.yaml:3  train.global_batch_size"
    assert caught.value.fix == "write train.global_batch_size: 12 or 18"


def test_accumulation_that_contradicts_the_global_batch_is_refused():
    with pytest.raises(RecipeError, match="needs 8 accumulation steps"):
        make_batch_plan(
            recipe(
                per_device_train_batch_size=2, global_batch_size=16, gradient_accumulation_steps=4
            ),
            1,
        )


def test_without_a_global_batch_the_accumulation_decides():
    plan = make_batch_plan(
        recipe(
            per_device_train_batch_size=2, global_batch_size=None, gradient_accumulation_steps=4
        ),
        2,
    )
    assert plan.global_batch_size == 16
