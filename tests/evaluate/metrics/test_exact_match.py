"""The metric `exact_match`."""

from __future__ import annotations

from lora_sft.evaluate.metrics.exact_match import exact_match


def test_exact_match_ignores_only_white_space_at_the_beginning_and_the_end():
    assert exact_match(["a b", " a b\n", "a  b", "A b"], ["a b"] * 4) == 0.5
