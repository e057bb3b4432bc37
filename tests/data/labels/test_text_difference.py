"""The first difference of two texts, compared with its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_sft.data.labels.text_difference import find_first_difference

TEXTS = st.text(alphabet="ab", max_size=40)  # two letters give long common prefixes


@given(TEXTS, TEXTS, TEXTS)
def test_the_first_difference_follows_the_common_prefix(shared: str, left: str, right: str) -> None:
    one, other = shared + left, shared + right
    at = find_first_difference(one, other)
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1] or at == min(len(one), len(other))
