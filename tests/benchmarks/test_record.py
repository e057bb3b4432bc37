from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.record import Measurement, Record, hash_source, name_device, open_record
from tests.benchmarks.cases import make_case, make_environment


def test_the_spread_is_half_the_range_divided_by_the_median() -> None:
    measurement = Measurement("s", (9.0, 10.0, 12.0))
    assert measurement.median == 10.0
    assert measurement.spread == pytest.approx(0.15)
    assert Measurement("s", (3.0,)).spread == 0.0


def test_a_repetition_adds_samples_and_a_written_record_can_be_read(tmp_path: Path) -> None:
    record = Record(tmp_path / "start_up.json", "start_up")
    environment = make_environment()
    record.add(make_case("lora-sft", "ours", (1.0,)), environment)
    record.add(make_case("lora-sft", "ours", (2.0,)), environment)
    again = Record.read(record.path)
    assert again.cases[("a thing", "lora-sft")].measurements["cpu_seconds"].samples == (1.0, 2.0)
    assert again.cases == record.cases
    assert again.environments == record.environments


def test_a_case_from_another_source_is_replaced_and_not_mixed(tmp_path: Path) -> None:
    record = Record(tmp_path / "start_up.json", "start_up")
    old, new = make_environment(source="old"), make_environment(source="new")
    record.add(make_case("lora-sft", "ours", (1.0,)), old)
    record.add(make_case("lora-sft", "ours", (2.0,)), new)
    assert record.cases[("a thing", "lora-sft")].measurements["cpu_seconds"].samples == (2.0,)
    assert list(record.environments) == [new.key]


def test_environments_that_differ_only_in_date_and_commit_have_the_same_key() -> None:
    environment = make_environment()
    assert replace(environment, date="2027-01-01", commit="def").key == environment.key
    assert replace(environment, versions={"torch": "3"}).key != environment.key


def test_a_failed_repetition_keeps_the_earlier_samples(tmp_path: Path) -> None:
    record = Record(tmp_path / "start_up.json", "start_up")
    environment = make_environment()
    record.add(make_case("lora-sft", "ours", (1.0,)), environment)
    failed = replace(make_case("lora-sft", "ours", ()), status="failed", reason="out of memory")
    record.add(failed, environment)
    kept = record.cases[("a thing", "lora-sft")]
    assert kept.status == "measured"
    assert kept.num_samples == 1


def test_a_new_record_starts_with_the_cases_of_the_committed_record(tmp_path: Path) -> None:
    committed, out = tmp_path / "committed", tmp_path / "out"
    first = open_record(committed, "merge", "cpu-2-cores", start_from=tmp_path / "nowhere")
    first.add(make_case("lora-sft", "ours", (1.0,)), make_environment())
    again = open_record(out, "merge", "cpu-2-cores", start_from=committed)
    again.add(make_case("lora-sft", "ours", (2.0,)), make_environment())
    assert again.path == out / "cpu-2-cores" / "merge.json"
    assert Record.read(again.path).cases[("a thing", "lora-sft")].num_samples == 2
    assert Record.read(first.path).cases[("a thing", "lora-sft")].num_samples == 1


def test_the_hash_of_the_source_depends_only_on_python_files(tmp_path: Path) -> None:
    (tmp_path / "lora_sft").mkdir()
    (tmp_path / "benchmarks").mkdir()
    file = tmp_path / "lora_sft" / "a.py"
    file.write_text("x = 1\n")
    before = hash_source(tmp_path)
    (tmp_path / "benchmarks" / "README.md").write_text("not a source\n")
    assert hash_source(tmp_path) == before
    file.write_text("x = 2\n")
    assert hash_source(tmp_path) != before


def test_results_of_two_devices_go_to_two_folders() -> None:
    assert name_device({"gpu": "NVIDIA H100 80GB HBM3", "cores": 16}) == "nvidia-h100-80gb-hbm3"
    assert name_device({"gpu": None, "cores": 2}) == "cpu-2-cores"
