from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.record import Measurement
from benchmarks.tables import README, render, render_measurement
from tests.benchmarks.cases import make_case, make_record


def test_the_page_matches_the_records() -> None:
    assert README.read_text() == render(), "run: python -m benchmarks.tables"


def test_a_table_shows_the_ratio_and_names_what_was_not_measured(tmp_path: Path) -> None:
    make_record(
        tmp_path,
        make_case("lora-sft", "ours", (1.0, 1.2, 0.8)),
        make_case("TRL", "peer", (4.0, 4.0, 4.0)),
        replace(make_case("unsloth", "peer", ()), status="skipped", reason="needs CUDA"),
    )
    page = render(tmp_path)
    assert "| a thing | **lora-sft** | 1 CPU s ± 20% |" in page
    assert "|  | TRL | 4 CPU s ± 0% | 0.25 |" in page
    assert "|  | unsloth | not measured: needs CUDA |" in page
    assert "### Merge\n\nNot measured." in page
    assert "Not measured yet: gpu tests, throughput" in page


def test_a_void_result_shows_neither_number_nor_ratio(tmp_path: Path) -> None:
    ours = make_case("lora-sft", "ours", (1.0,))
    make_record(
        tmp_path,
        replace(ours, status="void", reason="step 1 has loss 3"),
        make_case("TRL", "peer", (4.0,)),
    )
    page = render(tmp_path)
    assert "| a thing | **lora-sft** | void: step 1 has loss 3 |" in page
    assert "|  | TRL | 4 CPU s |  |" in page


def test_numbers_are_shown_in_readable_units() -> None:
    assert render_measurement(Measurement("B", (3 * 2**30,))) == "3 GiB"
    assert render_measurement(Measurement("CPU s", (0.0125,))) == "12.5 CPU ms"
    assert render_measurement(Measurement("tok/s", (15_500.0,), "higher")) == "15.5 k tok/s ↑"
    assert render_measurement(Measurement("share", (0.4567,), "higher")) == "0.457 ↑"
