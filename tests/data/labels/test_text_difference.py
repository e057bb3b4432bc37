"""Where two texts part, against the plain definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_sft.data.labels.text_difference import find_first_difference

ALIKE = st.text(alphabet="ab", max_size=40)


@given(ALIKE, ALIKE, ALIKE)
def test_it_is_the_length_of_what_both_begin_with(shared: str, left: str, right: str) -> None:
    one, other = shared + left, shared + right
    at = find_first_difference(one, other)
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1] or at == min(len(one), len(other))
