from __future__ import annotations

from lora_sft.evaluate.metrics.exact_match import exact_match


def test_exact_match_forgives_outer_white_space_only():
    assert exact_match(["a b", " a b\n", "a  b", "A b"], ["a b"] * 4) == 0.5
