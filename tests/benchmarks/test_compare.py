from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare import compare_folders
from tests.benchmarks.cases import make_case, make_record


@pytest.mark.parametrize(
    ("ours", "peer", "verdict"),
    [
        ((1.0, 1.01, 0.99), (2.0, 2.01, 1.99), "same"),
        ((1.3, 1.31, 1.29), (2.0, 2.01, 1.99), "WORSE"),
        ((0.7, 0.71, 0.69), (2.0, 2.01, 1.99), "better"),
        ((1.3, 1.31, 1.29), (2.6, 2.61, 2.59), "same"),  # the machine slowed both
        ((1.2, 1.6, 1.0), (2.0, 2.01, 1.99), "same"),  # smaller than its own spread
    ],
)
def test_a_change_counts_if_it_exceeds_the_spreads_relative_to_the_peer(
    tmp_path: Path,
    ours: tuple[float, ...],
    peer: tuple[float, ...],
    verdict: str,
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make_record(
        old,
        make_case("lora-sft", "ours", (1.0, 1.01, 0.99)),
        make_case("TRL", "peer", (2.0, 2.01, 1.99)),
    )
    make_record(new, make_case("lora-sft", "ours", ours), make_case("TRL", "peer", peer))
    assert [change.verdict for change in compare_folders(old, new)] == [verdict]
